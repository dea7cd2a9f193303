//! A LAN, a cluster and a gateway between them, of network namespaces:
//!
//! ```text
//!   far ── router ─┐                                            ┌─ ClusterIPs
//!  192.168.99.2    │ 172.18.0.1                                 │  (lo)
//!                 br0 ─ up0 ═ macvlan ═ net1 [gateway] eth0 ── [node]
//!   client ────────┘ (namespace "lan")        10.16.0.5       10.16.0.1
//!  172.18.0.50
//! ```
//!
//! Each namespace lives in a process that dies with the test, whatever way it
//! ends; so nothing is left behind, and tests do not see each other.

// All of this is a test, though not by its attributes; and each of the programs
// that share it uses what it needs.
#![allow(clippy::unwrap_used, dead_code)]

pub mod election;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lb_svc_crds::gateway::GatewayStatus;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

pub const VIP: &str = "172.18.0.18";
pub const CLUSTER_IP: &str = "10.109.201.193";
pub const OTHER_CLUSTER_IP: &str = "10.109.201.194";
pub const POD_IP: &str = "10.16.0.5";
pub const ATTACHMENT: &str = "kube-system/lb-svc-attachment";

/// What waiting for a condition ends with.
const PATIENCE: Duration = Duration::from_secs(10);
/// The promise: drift is repaired within this.
pub const HEALED: Duration = Duration::from_secs(2);

/// Waits until `condition` gives a value, and says how long that took.
pub fn wait<T>(what: &str, condition: impl FnMut() -> Option<T>) -> (T, Duration) {
    wait_for(PATIENCE, what, condition)
}

/// The same, for that long.
pub fn wait_for<T>(
    patience: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> (T, Duration) {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return (value, start.elapsed());
        }
        assert!(start.elapsed() < patience, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A network namespace.
pub struct Netns(Child);

impl Netns {
    fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root: make netns");
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let netns = Self(child);
        let outside = fs::read_link("/proc/self/ns/net").unwrap();
        wait("a network namespace", || {
            let asleep = fs::read_to_string(format!("/proc/{}/comm", netns.pid())).ok()?;
            let inside = fs::read_link(netns.path()).ok()?;
            (asleep.trim() == "sleep" && inside != outside).then_some(())
        });
        netns.run("ip link set lo up");
        netns
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid()).into()
    }

    /// A command to run in the namespace.
    pub fn command(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a command line, and returns whether it went well and its output.
    pub fn attempt(&self, line: &str) -> (bool, String) {
        let output = self.command().args(["timeout", "10"]).args(line.split(' ')).output().unwrap();
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            text.push_str(&String::from_utf8_lossy(&output.stderr));
        }
        (output.status.success(), text)
    }

    /// Runs a command line that has to go well.
    pub fn run(&self, line: &str) -> String {
        let (ok, text) = self.attempt(line);
        assert!(ok, "{line}: {text}");
        text
    }

    /// Its output, line by line, without trailing blanks.
    pub fn lines(&self, line: &str) -> Vec<String> {
        self.run(line).lines().map(|l| l.trim_end().to_owned()).collect()
    }

    /// Does something in the namespace; sockets made there stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Connects, says something and returns the answer.
    pub fn tcp(&self, to: &str) -> io::Result<String> {
        let mut stream = self.connect(to)?;
        ask(&mut stream)
    }

    /// Connects by TCP.
    pub fn connect(&self, to: &str) -> io::Result<TcpStream> {
        let to: SocketAddr = to.parse().unwrap();
        let stream = self.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(700)))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        Ok(stream)
    }

    /// A UDP socket that keeps its port.
    pub fn udp(&self) -> UdpSocket {
        let socket = self.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Says something on a connection and returns the answer.
pub fn ask(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"hello\n")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// Sends a datagram and returns the answer, if one comes.
pub fn exchange(socket: &UdpSocket, to: &str) -> Option<String> {
    socket.send_to(b"hello", to).ok()?;
    let mut buffer = [0; 200];
    let (length, _) = socket.recv_from(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Servers that say who they are and whom they see.
struct Servers(Arc<AtomicBool>);

impl Servers {
    fn tcp(&self, netns: &Netns, at: &str) {
        let address: SocketAddr = at.parse().unwrap();
        let listener = netns.enter(|| TcpListener::bind(address)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::clone(&self.0);
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((stream, peer)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(2));
                    continue;
                };
                std::thread::spawn(move || {
                    stream.set_nonblocking(false).unwrap();
                    let mut writer = stream.try_clone().unwrap();
                    for _ in BufReader::new(stream).lines().map_while(Result::ok) {
                        let _ = writeln!(writer, "tcp {address} saw {}", peer.ip());
                    }
                });
            }
        });
    }

    fn udp(&self, netns: &Netns, at: &str) {
        let address: SocketAddr = at.parse().unwrap();
        let socket = netns.enter(|| UdpSocket::bind(address)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::clone(&self.0);
        std::thread::spawn(move || {
            let mut buffer = [0; 200];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                    let answer = format!("udp {address} saw {}", peer.ip());
                    let _ = socket.send_to(answer.as_bytes(), peer);
                }
            }
        });
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A pod that is served.
pub struct Endpoint(Servers);

/// The LAN with its hosts, and a pod on it.
pub struct Lab {
    pub lan: Netns,
    pub client: Netns,
    pub router: Netns,
    pub far: Netns,
    first: Site,
}

impl Deref for Lab {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.first
    }
}

impl Lab {
    /// With the files as Multus and the controller would leave them.
    pub fn new() -> Self {
        let (lan, client, router, far) = (Netns::new(), Netns::new(), Netns::new(), Netns::new());
        lan.run("ip link add br0 type bridge");
        lan.run("ip link set br0 up");
        for (port, host) in [("c0", &client), ("r0", &router)] {
            lan.run(&format!("ip link add {port} type veth peer name eth0 netns {}", host.pid()));
            lan.run(&format!("ip link set {port} master br0 up"));
        }
        client.run("ip addr add 172.18.0.50/16 dev eth0");
        client.run("ip link set eth0 up");
        client.run("ip route add default via 172.18.0.1");
        router.run("ip addr add 172.18.0.1/16 dev eth0");
        router.run("ip link set eth0 up");
        router.run(&format!("ip link add far0 type veth peer name eth0 netns {}", far.pid()));
        router.run("ip addr add 192.168.99.1/24 dev far0");
        router.run("ip link set far0 up");
        router.run("sysctl -qw net.ipv4.ip_forward=1");
        far.run("ip addr add 192.168.99.2/24 dev eth0");
        far.run("ip link set eth0 up");
        far.run("ip route add default via 192.168.99.1");
        let first = Site::new(&lan, 0);
        Self { lan, client, router, far, first }
    }

    /// Another pod on the LAN, on a node of its own.
    pub fn another(&self, number: usize) -> Site {
        Site::new(&self.lan, number)
    }
}

/// A pod, its node with the cluster behind it, and its mounted files.
pub struct Site {
    pub pod: Netns,
    pub node: Netns,
    servers: Servers,
    dir: tempfile::TempDir,
}

impl Site {
    fn new(lan: &Netns, number: usize) -> Self {
        let site = Self {
            pod: Netns::new(),
            node: Netns::new(),
            servers: Servers(Arc::default()),
            dir: tempfile::tempdir().unwrap(),
        };
        let (pod, node) = (&site.pod, &site.node);
        lan.run(&format!("ip link add p{number} type veth peer name up{number}"));
        lan.run(&format!("ip link set p{number} master br0 up"));
        lan.run(&format!("ip link set up{number} up"));
        lan.run(&format!("ip link add link up{number} name net1 type macvlan mode bridge"));
        lan.run(&format!("ip link set net1 netns {}", pod.pid()));
        node.run(&format!("ip link add eth0 type veth peer name eth0 netns {}", pod.pid()));
        node.run("ip addr add 10.16.0.1/16 dev eth0");
        node.run("ip link set eth0 up");
        for ip in [CLUSTER_IP, OTHER_CLUSTER_IP] {
            node.run(&format!("ip addr add {ip}/32 dev lo"));
        }
        pod.run(&format!("ip addr add {POD_IP}/16 dev eth0"));
        pod.run("ip link set eth0 up");
        pod.run("ip route add default via 10.16.0.1");
        for ip in [CLUSTER_IP, OTHER_CLUSTER_IP] {
            for port in [53, 80, 81, 8080] {
                site.servers.tcp(node, &format!("{ip}:{port}"));
                site.servers.udp(node, &format!("{ip}:{port}"));
            }
        }
        for volume in ["config", "pod"] {
            fs::create_dir(site.dir.path().join(volume)).unwrap();
        }
        site.report(&json!([
            {"name": "kindnet", "interface": "eth0", "ips": [POD_IP], "default": true, "dns": {}},
            {"name": ATTACHMENT, "interface": "net1", "mac": site.mac(), "dns": {}},
        ]));
        site
    }

    /// The LAN interface's hardware address.
    pub fn mac(&self) -> String {
        let links: Value = serde_json::from_str(&self.pod.run("ip -j link show net1")).unwrap();
        links[0]["address"].as_str().unwrap().to_owned()
    }

    /// An endpoint in the cluster that serves TCP and UDP on these ports, each
    /// until it is dropped.
    pub fn endpoint(&self, ip: &str, ports: &[u16]) -> Endpoint {
        self.node.attempt(&format!("ip addr add {ip}/32 dev lo"));
        let servers = Servers(Arc::default());
        for port in ports {
            servers.tcp(&self.node, &format!("{ip}:{port}"));
            servers.udp(&self.node, &format!("{ip}:{port}"));
        }
        Endpoint(servers)
    }

    /// Serves TCP somewhere else as well.
    pub fn serve_tcp(&self, netns: &Netns, at: &str) {
        self.servers.tcp(netns, at);
    }

    /// A directory that goes with the test.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes Multus's network-status.
    pub fn report(&self, networks: &Value) {
        self.volume("pod", "network-status", &networks.to_string());
    }

    /// Writes the configuration, which the controller has confirmed, and returns its
    /// digest.
    pub fn configure(&self, config: &Value) -> String {
        self.confirm(&lb_svc_crds::names::digest(config.to_string().as_bytes()));
        self.put_back(config)
    }

    /// Writes a configuration that the controller has not confirmed, and returns its
    /// digest.
    pub fn put_back(&self, config: &Value) -> String {
        let text = config.to_string();
        self.volume("config", "config.json", &text);
        lb_svc_crds::names::digest(text.as_bytes())
    }

    /// Names the configuration with this digest on the pod, as the controller does.
    pub fn confirm(&self, digest: &str) {
        self.volume("pod", lb_svc_crds::names::CONFIRMED_FILE, &format!("{digest}.0"));
    }

    /// Writes a file of a volume as the kubelet does: a new directory with all files, a
    /// symbolic link that is swapped.
    pub fn volume(&self, volume: &str, name: &str, text: &str) {
        let dir = self.dir.path().join(volume);
        let stamp = format!("..{:?}", Instant::now()).replace([' ', ',', '{', '}', ':'], "");
        let data = dir.join(&stamp);
        fs::create_dir(&data).unwrap();
        let old = fs::read_link(dir.join("..data")).ok();
        for file in old.iter().flat_map(|old| fs::read_dir(dir.join(old)).unwrap()) {
            let file = file.unwrap();
            fs::copy(file.path(), data.join(file.file_name())).unwrap();
        }
        fs::write(data.join(name), text).unwrap();
        std::os::unix::fs::symlink(&stamp, dir.join("..data_tmp")).unwrap();
        fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
        if !dir.join(name).exists() {
            std::os::unix::fs::symlink(Path::new("..data").join(name), dir.join(name)).unwrap();
        }
        if let Some(old) = old {
            fs::remove_dir_all(dir.join(old)).unwrap();
        }
    }

    /// Mounts the election's key.
    pub fn key(&self, byte: u8) {
        let volume = self.dir.path().join("key");
        fs::create_dir_all(&volume).unwrap();
        fs::write(volume.join("key"), [byte; 32]).unwrap();
    }

    /// Starts the gateway with all of root's capabilities.
    pub fn start(&self) -> Gateway<'_> {
        self.start_with("exec \"$@\"")
    }

    /// Starts it by a shell line that ends in running `"$@"`, in a mount
    /// namespace of its own.
    pub fn start_with(&self, wrapper: &str) -> Gateway<'_> {
        let log = self.dir.path().join("log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let child = self
            .pod
            .command()
            .args(["setpriv", "--pdeathsig", "KILL"])
            .args(["unshare", "--mount", "sh", "-ec", wrapper, "gateway"])
            .arg(env!("CARGO_BIN_EXE_lb-svc-gateway"))
            .arg("--config-dir")
            .arg(self.dir.path().join("config"))
            .arg("--pod-info-dir")
            .arg(self.dir.path().join("pod"))
            .arg("--key-dir")
            .arg(self.dir.path().join("key"))
            .stderr(file)
            .spawn()
            .unwrap();
        Gateway { site: self, child, log }
    }

    /// Starts it and waits until it has carried out `config`.
    pub fn serving(&self, config: &Value) -> Gateway<'_> {
        let digest = self.configure(config);
        let gateway = self.start();
        gateway.carried_out(&digest);
        gateway
    }

    /// The NAT, as the tools of its back end print it.
    pub fn nat(&self) -> String {
        self.pod.run(match nat_backend().as_str() {
            "iptables" => "iptables -t nat -S",
            _ => "nft -s list table ip lb-svc",
        })
    }

    /// Everything that the gateway owns in the kernel, as its tools print it.
    pub fn state(&self) -> String {
        let mut text = String::new();
        for line in
            ["ip rule", "ip route show table 100", "ip route", "ip -4 addr show dev net1", "iptables-save"]
        {
            let lines = self.pod.lines(line);
            // Dates and counters of iptables-save.
            let lines = lines.iter().filter(|l| !l.starts_with('#') && !l.starts_with(':'));
            for line in lines {
                let _ = writeln!(text, "{line}");
            }
        }
        for table in ["ip lb-svc", "ip lb-svc-filter", "ip6 lb-svc-filter"] {
            // Where the NAT is another's, there is no table for it.
            text += &self.pod.attempt(&format!("nft -s list table {table}")).1;
        }
        text
    }
}

/// What programs the NAT: the tests pass with either.
pub fn nat_backend() -> String {
    std::env::var("LB_SVC_NAT_BACKEND").unwrap_or_else(|_| "iptables".to_owned())
}

/// A configuration with one address and some ports to one ClusterIP.
pub fn config(ports: &[(&str, u16)]) -> Value {
    config_to(CLUSTER_IP, ports)
}

/// The same by this back end.
pub fn config_by(backend: &str, ports: &[(&str, u16)]) -> Value {
    let mut config = config(ports);
    config["natBackend"] = json!(backend);
    config
}

/// The same to another ClusterIP.
pub fn config_to(target: &str, ports: &[(&str, u16)]) -> Value {
    let ports: Vec<Value> =
        ports.iter().map(|(protocol, port)| json!({"protocol": protocol, "port": port})).collect();
    json!({
        "version": 1,
        "attachment": ATTACHMENT,
        "addresses": [address(VIP)],
        "frontends": [{
            "service": "default/test-service",
            "addresses": [VIP],
            "target": {"kind": "clusterIp", "addresses": [target]},
            "ports": ports,
        }],
        "natBackend": nat_backend(),
        "election": {"gateway": "6b1f3c52-0a43-4f0e-9d0b-3f1c2a9d8e77", "intervalMs": 50},
    })
}

/// A configuration with one address, whose ports lead straight to endpoints.
pub fn config_direct(ports: &[(&str, u16)], subsets: &Value) -> Value {
    let mut config = config(ports);
    config["version"] = json!(5);
    config["frontends"][0]["target"] = json!({"kind": "endpoints", "subsets": subsets});
    config
}

/// An address of the LAN's Subnet.
pub fn address(ip: &str) -> Value {
    json!({"address": ip, "cidr": "172.18.0.0/16", "gateway": "172.18.0.1", "subnet": "lan"})
}

/// A running gateway.
pub struct Gateway<'a> {
    site: &'a Site,
    child: Child,
    log: PathBuf,
}

impl Gateway<'_> {
    /// A page of its server, with the status code.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = self.site.node.connect(&format!("{POD_IP}:9410")).ok()?;
        // Metrics tell of each connection, and a table may be full of them: as
        // long as Prometheus waits. All else answers at once.
        if path == "/metrics" {
            stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
        }
        write!(stream, "GET {path} HTTP/1.1\r\nHost: gateway\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        let code = head.split(' ').nth(1)?.parse().ok()?;
        Some((code, body.to_owned()))
    }

    /// What it says of itself.
    pub fn status(&self) -> Option<GatewayStatus> {
        serde_json::from_str(&self.get("/status")?.1).ok()
    }

    /// Waits for the configuration with this digest to be carried out.
    pub fn carried_out(&self, digest: &str) -> Duration {
        let what = || {
            let status = self.status()?;
            (status.digest.as_deref() == Some(digest)).then_some(())
        };
        wait(&format!("digest {digest}"), what).1
    }

    /// Waits for a fault, and returns its sentence.
    pub fn fault(&self, reason: &str) -> String {
        let what = || self.status()?.faults.get(reason).cloned();
        wait(&format!("fault {reason}"), what).0
    }

    /// A value of its metrics, 0 where there is none.
    pub fn metric(&self, name: &str) -> u64 {
        let (_, body) = self.get("/metrics").unwrap();
        let line = body.lines().find_map(|line| line.strip_prefix(name));
        line.map_or(0, |value| value.trim().parse().unwrap())
    }

    /// Ends it with no chance to clean up, and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and returns whether it did so well and how fast.
    pub fn terminate(mut self) -> (bool, Duration) {
        let start = Instant::now();
        self.signal(Signal::SIGTERM);
        (self.child.wait().unwrap().success(), start.elapsed())
    }

    /// Asks it to end, and leaves it to it.
    pub fn ask_to_end(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Whether the process has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Stops it where it is, or lets it go on.
    pub fn pause(&self, pause: bool) {
        self.signal(if pause { Signal::SIGSTOP } else { Signal::SIGCONT });
    }

    fn signal(&self, signal: Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.log).unwrap_or_default());
            eprintln!("{:?}\n{}", self.status(), self.site.state());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
