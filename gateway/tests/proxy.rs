//! Ports with the PROXY protocol: the real gateway on a real kernel. Needs root;
//! `make netns` runs it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use lab::{CLUSTER_IP, Gateway, HEALED, Lab, Netns, OTHER_CLUSTER_IP, POD_IP, VIP, config, exchange, wait};
use lb_svc_crds::gateway::Role;
use serde_json::{Value, json};
use socket2::SockRef;

const PORT: u16 = 443;

/// Port 443 of TCP with a header, and port 53 of UDP.
fn proxied() -> Value {
    proxied_ports(&[("TCP", PORT), ("UDP", 53)])
}

fn proxied_ports(ports: &[(&str, u16)]) -> Value {
    let mut config = config(ports);
    config["version"] = json!(7);
    config["frontends"][0]["proxyProtocol"] = json!("v2");
    config
}

/// The same straight to endpoints, on their port 8443.
fn direct(live: &[&str], draining: &[&str]) -> Value {
    let mut config = proxied_ports(&[("TCP", PORT)]);
    let ports = json!([{"protocol": "TCP", "port": PORT, "targetPort": 8443}]);
    let subset = json!({"ports": ports, "addresses": live, "draining": draining});
    config["frontends"][0]["target"] = json!({"kind": "endpoints", "subsets": [subset]});
    config
}

/// A server that is told its clients' addresses.
struct Backend(TcpListener);

impl Backend {
    fn at(netns: &Netns, at: &str) -> Self {
        let ip = at.split(':').next().unwrap();
        netns.attempt(&format!("ip addr add {ip}/32 dev lo"));
        let at: SocketAddr = at.parse().unwrap();
        let listener = netns.enter(|| TcpListener::bind(at)).unwrap();
        Self(listener)
    }

    fn of_cluster_ip(lab: &Lab) -> Self {
        Self::at(&lab.node, &format!("{CLUSTER_IP}:{PORT}"))
    }

    /// The next connection, whatever is sent on it first.
    fn accept(&self) -> TcpStream {
        self.0.set_nonblocking(true).unwrap();
        let accepted = || self.0.accept().ok();
        let (stream, _) = wait("a connection", accepted).0;
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    /// The next connection, with the client and the frontend that its header names.
    fn greeted(&self) -> (TcpStream, SocketAddrV4, SocketAddrV4) {
        let mut stream = self.accept();
        let mut header = [0; 28];
        stream.read_exact(&mut header).unwrap();
        assert_eq!(header[..16], *b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c");
        let address = |at| Ipv4Addr::from(<[u8; 4]>::try_from(&header[at..at + 4]).unwrap());
        let port = |at| u16::from_be_bytes([header[at], header[at + 1]]);
        let (client, frontend) = (address(16), address(20));
        (stream, SocketAddrV4::new(client, port(24)), SocketAddrV4::new(frontend, port(26)))
    }
}

/// A connection to the address, which may last long.
fn connect(host: &Netns) -> io::Result<TcpStream> {
    let stream = host.connect(&format!("{VIP}:{PORT}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Both ends of a connection.
fn open(lab: &Lab, backend: &Backend) -> (TcpStream, TcpStream) {
    let client = connect(&lab.client).unwrap();
    let (server, seen, _) = backend.greeted();
    assert_eq!(SocketAddr::V4(seen), client.local_addr().unwrap());
    (client, server)
}

fn say(from: &mut TcpStream, to: &mut TcpStream, text: &str) {
    from.write_all(text.as_bytes()).unwrap();
    let mut heard = vec![0; text.len()];
    to.read_exact(&mut heard).unwrap();
    assert_eq!(heard, text.as_bytes());
}

fn is_reset(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 1];
    matches!(stream.read(&mut buffer), Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

/// Closes by a reset.
fn reset(stream: TcpStream) {
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(stream);
}

fn open_connections(gateway: &Gateway) -> u64 {
    gateway.metric("lb_svc_gateway_proxied_connections ")
}

fn all_closed(gateway: &Gateway) {
    wait("no connection to be left", || (open_connections(gateway) == 0).then_some(()));
}

/// Whether the proxy takes no connection: it is reset as soon as it is there.
fn is_refused(host: &Netns) -> bool {
    match connect(host) {
        Ok(mut stream) => is_reset(&mut stream),
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

#[test]
fn backend_is_told_the_clients_address_and_port() {
    let lab = Lab::new();
    let backend = Backend::of_cluster_ip(&lab);
    let gateway = lab.serving(&proxied());
    // Counters come a little later.
    let counting = || lab.pod.attempt("nft list table ip lb-svc-traffic").1.contains(VIP).then_some(());
    wait("counters", counting);
    for host in [&lab.client, &lab.far] {
        let mut client = connect(host).unwrap();
        let (mut server, seen, frontend) = backend.greeted();
        assert_eq!(SocketAddr::V4(seen), client.local_addr().unwrap());
        assert_eq!(frontend.to_string(), format!("{VIP}:{PORT}"));
        assert_eq!(server.peer_addr().unwrap().ip().to_string(), POD_IP);
        say(&mut client, &mut server, "to the server");
        say(&mut server, &mut client, "to the client");
        // UDP has no header: it is forwarded as ever.
        let answer = exchange(&host.udp(), &format!("{VIP}:53")).unwrap();
        assert!(answer.contains(&format!("saw {POD_IP}")), "{answer}");
    }
    all_closed(&gateway);
    let status = gateway.status().unwrap();
    assert!(status.faults.is_empty() && status.limits.is_empty(), "{status:?}");
    let labels =
        format!("service=\"default/test-service\",address=\"{VIP}\",protocol=\"tcp\",port=\"{PORT}\"");
    wait("both to be counted", || {
        let count = gateway.metric(&format!("lb_svc_gateway_connections_total{{{labels}}}"));
        (count == 2).then_some(())
    });
    for direction in ["in", "out"] {
        let bytes =
            gateway.metric(&format!("lb_svc_gateway_bytes_total{{{labels},direction=\"{direction}\"}}"));
        assert!(bytes > 13, "{direction}: {bytes}");
    }
    assert_eq!(gateway.metric("lb_svc_gateway_ports "), 2);

    // Whoever damages it, it is whole again.
    assert_eq!(lab.pod.lines("ip rule")[1], "32761:\tfrom all fwmark 0xff000001 lookup 32761");
    assert_eq!(lab.pod.lines("ip route show table 32761"), ["local default dev lo scope host"]);
    let state = || {
        let lines = ["ip rule", "ip route show table 32761", "nft -s list table ip lb-svc-proxy"];
        lines.map(|line| lab.pod.attempt(line).1)
    };
    let good = state();
    for damage in ["nft delete table ip lb-svc-proxy", "ip rule del pref 32761", "ip route flush table 32761"]
    {
        lab.pod.run(damage);
        let (_, took) = wait(damage, || (state() == good).then_some(()));
        assert!(took < HEALED, "{damage}: {took:?}");
        open(&lab, &backend);
    }

    // Without the annotation nothing of it is left.
    let (mut client, _server) = open(&lab, &backend);
    gateway.carried_out(&lab.configure(&config(&[("TCP", PORT), ("UDP", 53)])));
    assert!(is_reset(&mut client));
    let client = lab.client.connect(&format!("{VIP}:{PORT}")).unwrap();
    let server = backend.accept();
    assert_eq!(server.peer_addr().unwrap().ip().to_string(), POD_IP);
    drop(client);
    let rest = state();
    assert!(!rest[0].contains("32761") && rest[2].contains("No such file"), "{rest:?}");
    // And back.
    gateway.carried_out(&lab.configure(&proxied()));
    open(&lab, &backend);
}

#[test]
fn end_of_one_direction_is_passed_on_alone() {
    let lab = Lab::new();
    let backend = Backend::of_cluster_ip(&lab);
    let gateway = lab.serving(&proxied());
    for client_first in [true, false] {
        let (mut client, mut server) = open(&lab, &backend);
        let (one, other) = if client_first { (&mut client, &mut server) } else { (&mut server, &mut client) };
        one.write_all(b"the last").unwrap();
        one.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        other.read_to_string(&mut text).unwrap();
        assert_eq!(text, "the last");
        // The other direction goes on, also after a while.
        std::thread::sleep(Duration::from_millis(200));
        say(other, one, "still here");
        other.shutdown(Shutdown::Write).unwrap();
        text.clear();
        one.read_to_string(&mut text).unwrap();
        assert_eq!(text, "");
    }
    all_closed(&gateway);
}

#[test]
fn reset_is_passed_on_as_a_reset() {
    let lab = Lab::new();
    let backend = Backend::of_cluster_ip(&lab);
    let gateway = lab.serving(&proxied());
    for half_closed in [false, true] {
        for client_first in [true, false] {
            let (client, server) = open(&lab, &backend);
            let (one, mut other) = if client_first { (client, server) } else { (server, client) };
            if half_closed {
                one.shutdown(Shutdown::Write).unwrap();
                assert_eq!(other.read(&mut [0; 1]).unwrap(), 0);
                reset(one);
                // It has read the end already, and hears of the reset when it writes.
                wait("the reset", || other.write_all(b"x").is_err().then_some(()));
            } else {
                reset(one);
                assert!(is_reset(&mut other), "client first: {client_first}");
            }
        }
    }
    all_closed(&gateway);

    // One that resets while the other takes nothing: what waits is of no use any more.
    let (mut client, server) = open(&lab, &backend);
    client.set_nonblocking(true).unwrap();
    let chunk = vec![7; 64 * 1024];
    let mut sent = 0;
    let mut quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(300) {
        match client.write(&chunk) {
            Ok(count) => (sent, quiet) = (sent + count, Instant::now()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    println!("{sent} bytes wait");
    reset(client);
    all_closed(&gateway);
    drop(server);

    // A target that refuses: the client is reset.
    drop(backend);
    assert!(is_refused(&lab.client));
    assert_eq!(gateway.metric("lb_svc_gateway_proxy_refused_total{reason=\"unreachable\"}"), 1);
}

#[test]
fn bytes_arrive_as_they_are_sent() {
    let lab = Lab::new();
    let backend = Backend::of_cluster_ip(&lab);
    let _gateway = lab.serving(&proxied());
    let (mut client, mut server) = open(&lab, &backend);
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    // One by one, each on its way at once.
    let started = Instant::now();
    for number in 0..200u8 {
        client.write_all(&[number]).unwrap();
        let mut heard = [0; 1];
        server.read_exact(&mut heard).unwrap();
        server.write_all(&heard).unwrap();
        client.read_exact(&mut heard).unwrap();
        assert_eq!(heard, [number]);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());

    // Many, with both ends writing, and one that reads slowly at first.
    const MANY: usize = 32 * 1024 * 1024;
    let pattern =
        |offset: usize| -> Vec<u8> { (offset..offset + 64 * 1024).map(|at| (at % 251) as u8).collect() };
    let write = |mut to: TcpStream| {
        for offset in (0..MANY).step_by(64 * 1024) {
            to.write_all(&pattern(offset)).unwrap();
        }
        to.shutdown(Shutdown::Write).unwrap();
    };
    let read = |mut from: TcpStream| {
        std::thread::sleep(Duration::from_millis(300));
        let mut all = Vec::new();
        from.read_to_end(&mut all).unwrap();
        assert_eq!(all.len(), MANY);
        assert!(all.iter().enumerate().all(|(at, byte)| *byte == (at % 251) as u8));
    };
    std::thread::scope(|scope| {
        for stream in [&client, &server] {
            let (reader, writer) = (stream.try_clone().unwrap(), stream.try_clone().unwrap());
            scope.spawn(|| write(writer));
            scope.spawn(|| read(reader));
        }
    });
}

/// Its memory, with that of its sockets: a group of processes of its own, where the
/// kernel has version 1 of them; else the process's alone.
fn memory(pid: &str) -> u64 {
    let group = format!("/sys/fs/cgroup/memory/{}", group());
    if let Ok(text) = std::fs::read_to_string(format!("{group}/memory.usage_in_bytes")) {
        return text.trim().parse().unwrap();
    }
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

fn group() -> String {
    format!("lb-svc-proxy-test-{}", std::process::id())
}

#[test]
fn thousands_of_idle_connections_take_little_memory() {
    const COUNT: usize = 2_000;
    let lab = Lab::new();
    let backend = Backend::of_cluster_ip(&lab);
    let path = format!("/sys/fs/cgroup/memory/{}", group());
    let grouped = std::fs::create_dir(&path).is_ok();
    let digest = lab.configure(&proxied());
    let join = if grouped { format!("echo $$ > {path}/cgroup.procs; ") } else { String::new() };
    let gateway =
        lab.start_with(&format!("{join}echo $$ > {}; exec \"$@\"", lab.dir().join("pid").display()));
    gateway.carried_out(&digest);
    let pid = std::fs::read_to_string(lab.dir().join("pid")).unwrap();
    let exchange = |client: &mut TcpStream, server: &mut TcpStream| {
        say(client, server, "a request");
        say(server, client, &"a response".repeat(200));
    };
    let (mut client, mut server) = open(&lab, &backend);
    exchange(&mut client, &mut server);
    let before = memory(pid.trim());
    // Files of this process: two for each.
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 10_000, 10_000).unwrap();
    let mut connections: Vec<(TcpStream, TcpStream)> = (0..COUNT).map(|_| open(&lab, &backend)).collect();
    for (client, server) in &mut connections {
        exchange(client, server);
    }
    assert_eq!(open_connections(&gateway), 1 + u64::try_from(COUNT).unwrap());
    let each = memory(pid.trim()).saturating_sub(before) / u64::try_from(COUNT).unwrap();
    println!("{each} bytes a connection{}", if grouped { "" } else { ", the kernel's aside" });
    assert!(each <= 40 * 1024, "{each}");
    // The others are served as ever.
    let started = Instant::now();
    let (mut client, mut server) = open(&lab, &backend);
    exchange(&mut client, &mut server);
    assert!(started.elapsed() < Duration::from_millis(300), "{:?}", started.elapsed());
    drop((client, server, connections));
    drop(gateway);
    if grouped {
        wait("the group to be empty", || std::fs::remove_dir(&path).ok());
    }
}

#[test]
fn one_too_many_is_refused_and_counted() {
    let lab = Lab::new();
    let backend = Backend::of_cluster_ip(&lab);
    let digest = lab.configure(&proxied());
    let gateway = lab.start_with("ulimit -n 512; exec \"$@\"");
    gateway.carried_out(&digest);
    let most = gateway.metric("lb_svc_gateway_proxied_connections_limit ");
    assert_eq!(most, 64);
    let mut connections: Vec<_> = (0..most).map(|_| open(&lab, &backend)).collect();
    assert!(is_refused(&lab.client));
    assert_eq!(gateway.metric("lb_svc_gateway_proxy_refused_total{reason=\"full\"}"), 1);
    let (said, _) = wait("the limit", || gateway.status()?.limits.get("ProxyFull").cloned());
    assert!(said.contains("64"), "{said}");
    assert_eq!(gateway.get("/readyz").unwrap().0, 200, "it is a limit, and no fault");
    // Those that are there go on, and one that ends makes room.
    let (client, server) = connections.last_mut().unwrap();
    say(client, server, "hello");
    drop(connections.pop());
    wait("room", || (open_connections(&gateway) < most).then_some(()));
    open(&lab, &backend);
}

#[test]
fn source_ranges_hold_for_new_and_for_open_connections() {
    let lab = Lab::new();
    let backend = Backend::of_cluster_ip(&lab);
    let limited = |networks: &[&str]| {
        let mut config = proxied();
        config["frontends"][0]["clients"] = json!(networks);
        config
    };
    let gateway = lab.serving(&limited(&["172.18.0.0/16"]));
    let (mut client, mut server) = open(&lab, &backend);
    let dropped = connect(&lab.far).unwrap_err();
    assert!([ErrorKind::TimedOut, ErrorKind::WouldBlock].contains(&dropped.kind()), "{dropped}");
    gateway.carried_out(&lab.configure(&limited(&["172.18.0.0/16", "192.168.99.0/24"])));
    let mut far = connect(&lab.far).unwrap();
    let (mut of_far, ..) = backend.greeted();
    say(&mut client, &mut server, "unaffected");
    gateway.carried_out(&lab.configure(&limited(&["192.168.99.0/24"])));
    // The server hears of it, and whoever may not connect hears nothing.
    assert!(is_reset(&mut server));
    assert!(connect(&lab.client).is_err());
    say(&mut far, &mut of_far, "unaffected");
    let labels =
        format!("service=\"default/test-service\",address=\"{VIP}\",protocol=\"tcp\",port=\"{PORT}\"");
    assert!(gateway.metric(&format!("lb_svc_gateway_dropped_packets_total{{{labels}}}")) > 0);
}

#[test]
fn endpoints_are_used_drained_and_cut_as_by_the_nat() {
    let lab = Lab::new();
    let (first, second) =
        (Backend::at(&lab.node, "10.17.0.1:8443"), Backend::at(&lab.node, "10.17.0.2:8443"));
    let gateway = lab.serving(&direct(&["10.17.0.1"], &[]));
    let (mut client, mut server) = open(&lab, &first);
    // On its way out: it keeps what it has.
    gateway.carried_out(&lab.configure(&direct(&["10.17.0.2"], &["10.17.0.1"])));
    open(&lab, &second);
    say(&mut client, &mut server, "goes on");
    // Gone.
    gateway.carried_out(&lab.configure(&direct(&["10.17.0.2"], &[])));
    assert!(is_reset(&mut client));
    assert!(is_reset(&mut server));
    // Nobody is left.
    let (mut client, _server) = open(&lab, &second);
    gateway.carried_out(&lab.configure(&direct(&[], &[])));
    assert!(is_reset(&mut client));
    assert!(is_refused(&lab.client));
    // The port goes, and with it what is open.
    gateway.carried_out(&lab.configure(&direct(&["10.17.0.1"], &[])));
    let (mut client, _server) = open(&lab, &first);
    gateway.carried_out(&lab.configure(&config(&[("TCP", 80)])));
    assert!(is_reset(&mut client));
    assert_eq!(connect(&lab.client).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // Another ClusterIP is another target.
    let (old, new) =
        (Backend::of_cluster_ip(&lab), Backend::at(&lab.node, &format!("{OTHER_CLUSTER_IP}:{PORT}")));
    gateway.carried_out(&lab.configure(&proxied()));
    let (mut client, _server) = open(&lab, &old);
    let mut moved = proxied();
    moved["frontends"][0]["target"]["addresses"] = json!([OTHER_CLUSTER_IP]);
    gateway.carried_out(&lab.configure(&moved));
    assert!(is_reset(&mut client));
    open(&lab, &new);
}

#[test]
fn client_with_affinity_stays_with_its_endpoint() {
    let lab = Lab::new();
    let pods = ["10.17.0.1", "10.17.0.2", "10.17.0.3", "10.17.0.4"];
    let backends = pods.map(|pod| Backend::at(&lab.node, &format!("{pod}:8443")));
    for backend in &backends {
        backend.0.set_nonblocking(true).unwrap();
    }
    let sticky = |live: &[&str]| {
        let mut config = direct(live, &[]);
        config["frontends"][0]["target"]["affinitySeconds"] = json!(3600);
        config
    };
    let clients: Vec<String> = (100..120).map(|last| format!("172.18.7.{last}")).collect();
    for client in &clients {
        lab.client.run(&format!("ip addr add {client}/16 dev eth0"));
    }
    let home = |client: &String| -> usize {
        let stream = lab.client.enter(|| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&format!("{client}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
            socket.connect(&format!("{VIP}:{PORT}").parse::<SocketAddr>().unwrap().into()).unwrap();
            TcpStream::from(socket)
        });
        let at = || backends.iter().position(|backend| backend.0.accept().is_ok());
        let (at, _) = wait("an endpoint", at);
        drop(stream);
        at
    };
    let gateway = lab.serving(&sticky(&pods[..3]));
    let first: Vec<usize> = clients.iter().map(home).collect();
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3, "{first:?}");
    assert_eq!(clients.iter().map(home).collect::<Vec<_>>(), first);
    // One more: nobody moves.
    gateway.carried_out(&lab.configure(&sticky(&pods)));
    assert_eq!(clients.iter().map(home).collect::<Vec<_>>(), first);
}

#[test]
fn cluster_ip_that_serves_sockets_only_is_no_obstacle() {
    let lab = Lab::new();
    let backend = Backend::of_cluster_ip(&lab);
    // What sockets send has options, what is sent past them has none.
    for line in [
        "nft add table ip sockets",
        "nft add chain ip sockets in { type filter hook prerouting priority -300 ; }",
        &format!("nft add rule ip sockets in ip daddr {CLUSTER_IP} tcp flags syn ip length 40 drop"),
    ] {
        lab.node.run(line);
    }
    let gateway = lab.serving(&proxied_ports(&[("TCP", PORT)]));
    let quiet = Instant::now();
    while quiet.elapsed() < Duration::from_secs(4) {
        let status = gateway.status().unwrap();
        assert!(status.faults.is_empty(), "{status:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    // What the check connects is no connection of a client's.
    while backend.0.set_nonblocking(true).is_ok() && backend.0.accept().is_ok() {}
    open(&lab, &backend);
    // Where the kernel forwards, it is.
    lab.configure(&config(&[("TCP", PORT)]));
    assert!(gateway.fault("ClusterIpSocketsOnly").contains(CLUSTER_IP));
}

#[test]
fn nothing_but_the_port_leads_to_the_proxy() {
    let lab = Lab::new();
    let backend = Backend::of_cluster_ip(&lab);
    let gateway = lab.serving(&proxied());
    let listening = lab.pod.lines("ss -Hltn");
    let listener = listening
        .iter()
        .find_map(|line| line.split_whitespace().find_map(|word| word.strip_prefix("127.0.0.1:")));
    let port: u16 = listener.unwrap().parse().unwrap();
    for (host, via) in [(&lab.client, Some(VIP)), (&lab.node, None)] {
        // The pod's own addresses, by the LAN and by the pod network.
        if let Some(via) = via {
            host.run(&format!("ip route add {POD_IP}/32 via {via}"));
        }
        for address in [VIP, POD_IP, "127.0.0.1"] {
            let connected = host.connect(&format!("{address}:{port}"));
            assert!(connected.is_err(), "{address}:{port}");
        }
        let connected = host.connect(&format!("{POD_IP}:{PORT}"));
        assert!(connected.is_err(), "the port at the pod's own address");
    }
    // By the loopback address from outside, which hosts do not send by themselves.
    lab.client.run("sysctl -qw net.ipv4.conf.all.route_localnet=1");
    lab.client.run("ip addr del 127.0.0.1/8 dev lo");
    lab.client.run(&format!("ip route add 127.0.0.1/32 via {VIP}"));
    assert!(lab.client.connect(&format!("127.0.0.1:{port}")).is_err());
    // A process in the pod that connects to it is no client of any port.
    let mut own = lab.pod.connect(&format!("127.0.0.1:{port}")).unwrap();
    assert!(is_reset(&mut own));
    assert_eq!(open_connections(&gateway), 0);
    open(&lab, &backend);

    // Without the process the port is refused, and nothing hangs.
    let (mut client, mut server) = open(&lab, &backend);
    gateway.kill();
    assert!(is_reset(&mut client) && is_reset(&mut server));
    assert_eq!(connect(&lab.client).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    let _gateway = lab.serving(&proxied());
    open(&lab, &backend);
}

#[test]
fn health_check_begins_with_the_header_of_an_own_connection() {
    let lab = Lab::new();
    let backend = Backend::at(&lab.node, "10.17.0.1:8443");
    let checked = |port: Option<u16>| {
        let mut config = direct(&["10.17.0.1"], &[]);
        config["frontends"][0]["target"]["check"] = json!({
            "path": "/healthz", "port": port, "intervalMs": 200, "timeoutMs": 1000, "rise": 1, "fall": 1,
        });
        config
    };
    let healthy = |gateway: &Gateway| {
        wait("the endpoint to be healthy", || gateway.status()?.unhealthy.is_empty().then_some(()));
    };
    let answer = |header: &[u8]| {
        let mut stream = backend.accept();
        let mut sent = vec![0; header.len() + 4];
        stream.read_exact(&mut sent).unwrap();
        assert_eq!(sent, [header, b"GET "].concat());
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
    };
    let digest = lab.configure(&checked(None));
    let gateway = lab.start();
    answer(b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00");
    gateway.carried_out(&digest);
    healthy(&gateway);
    // A port that is named is taken to expect none.
    lab.configure(&checked(Some(PORT)));
    let quiet = Instant::now();
    while quiet.elapsed() < Duration::from_millis(600) {
        // What was under way.
        let _ = backend.0.accept();
        std::thread::sleep(Duration::from_millis(10));
    }
    answer(b"");
    healthy(&gateway);
}

#[test]
fn planned_move_loses_no_proxied_connection() {
    let lab = Lab::new();
    lab.key(7);
    let backend = Backend::of_cluster_ip(&lab);
    let mut leisurely = proxied();
    leisurely["election"]["intervalMs"] = json!(200);
    let mut gateway = lab.serving(&leisurely);
    let is = |gateway: &Gateway, role: Role| {
        wait(&format!("{role:?}"), || (gateway.status()?.election?.role == role).then_some(()));
    };
    is(&gateway, Role::Active);
    let (mut client, mut server) = open(&lab, &backend);
    let other = lab.another(1);
    other.key(7);
    let new = Backend::at(&other.node, &format!("{CLUSTER_IP}:{PORT}"));
    let second = other.serving(&leisurely);
    is(&second, Role::Standby);
    wait("the standby to be heard", || (gateway.status()?.election?.peers.len() == 1).then_some(()));
    for site in [&*lab, &other] {
        wait("strays to have somewhere to go", || {
            site.pod.attempt("nft list table ip lb-svc-strays").0.then_some(())
        });
    }
    gateway.ask_to_end();
    is(&second, Role::Active);
    // A new connection is the new owner's; the old one goes on.
    let _connected = wait("the new owner to accept", || connect(&lab.client).ok());
    new.greeted();
    let until = Instant::now() + Duration::from_secs(4);
    while Instant::now() < until {
        say(&mut client, &mut server, "goes on");
        say(&mut server, &mut client, "both ways");
    }
    assert!(!gateway.has_ended(), "it leads a connection");
    drop((client, server));
    wait("it to end", || gateway.has_ended().then_some(()));
}

/// A program in the node's namespace that ends with the test.
struct Program(std::process::Child);

impl Program {
    fn start(lab: &Lab, line: &str) -> Self {
        let log = std::fs::File::create(lab.dir().join("program-log")).unwrap();
        let child = lab
            .node
            .command()
            .args(["setpriv", "--pdeathsig", "KILL"])
            .args(line.split(' '))
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// nginx and HAProxy, of which each answers with the client that it sees, and logs it.
fn servers(dir: &std::path::Path) -> [(&'static str, String, String); 2] {
    let dir = dir.display();
    let nginx = format!(
        "daemon off; master_process off; pid {dir}/pid; error_log stderr;
events {{}}
http {{
  log_format client '$proxy_protocol_addr:$proxy_protocol_port';
  access_log /dev/stdout client;
  client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c;
  uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;
  server {{
    listen 10.17.0.1:8443 proxy_protocol;
    location / {{ return 200 '$proxy_protocol_addr:$proxy_protocol_port'; }}
  }}
}}
"
    );
    let haproxy = "global
  log stdout format raw local0
defaults
  mode http
  timeout client 5s
  timeout connect 5s
  timeout server 5s
frontend web
  log global
  log-format %ci:%cp
  bind 10.17.0.1:8443 accept-proxy
  http-request return status 200 content-type text/plain lf-string %ci:%cp
";
    [
        ("nginx", nginx, format!("nginx -e stderr -c {dir}/server.conf")),
        ("haproxy", haproxy.to_owned(), format!("haproxy -db -f {dir}/server.conf")),
    ]
}

#[test]
fn nginx_and_haproxy_answer_and_log_the_clients_address() {
    let lab = Lab::new();
    lab.node.run("ip addr add 10.17.0.1/32 dev lo");
    let mut config = direct(&["10.17.0.1"], &[]);
    config["frontends"][0]["target"]["check"] =
        json!({"path": "/", "intervalMs": 200, "timeoutMs": 1000, "rise": 1, "fall": 1});
    let gateway = lab.serving(&config);
    for (name, text, line) in servers(lab.dir()) {
        std::fs::write(lab.dir().join("server.conf"), text).unwrap();
        let program = Program::start(&lab, &line);
        wait(&format!("{name} to be healthy"), || gateway.status()?.unhealthy.is_empty().then_some(()));
        for host in [&lab.client, &lab.far] {
            let mut client = connect(host).unwrap();
            let own = client.local_addr().unwrap().to_string();
            client.write_all(b"GET / HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).unwrap();
            assert!(answer.ends_with(&own), "{name}: {answer}");
            wait(&format!("{name} to log {own}"), || {
                let log = std::fs::read_to_string(lab.dir().join("program-log")).ok()?;
                log.lines().any(|line| line == own).then_some(())
            });
        }
        drop(program);
        wait(&format!("{name} to be gone"), || (!gateway.status()?.unhealthy.is_empty()).then_some(()));
    }
}
