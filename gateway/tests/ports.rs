//! What a thousand ports cost in the gateway, beside one `iptables-restore` of
//! as many rules, what thousands of endpoints do, and what the proxy carries beside the
//! masquerade: `e2e/bench.sh` runs it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use lab::{CLUSTER_IP, Gateway, Lab, Netns, VIP, config, config_direct};
use serde_json::{Value, json};

const RUNS: usize = 10;

fn median(times: &mut [Duration]) -> f64 {
    times.sort();
    (times[(times.len() - 1) / 2] + times[times.len() / 2]).as_secs_f64() * 500.0
}

/// Ends in a line for programs to read.
#[test]
#[ignore = "a measurement: make bench"]
fn a_thousand_ports() {
    let lab = Lab::new();
    // The first port stays: what was only added to is served without a look at
    // the connections there are.
    let ports: Vec<(&str, u16)> = std::iter::once(80).chain(1001..2000).map(|port| ("TCP", port)).collect();
    let (one, thousand) = (config(&[("TCP", 80)]), config(&ports));
    let rule = |port: &u16| {
        format!(
            "-A BARE -d {VIP}/32 -p tcp -m tcp --dport {port} -j DNAT --to-destination {CLUSTER_IP}:{port}\n"
        )
    };
    let rules: String = ports.iter().map(|(_, port)| rule(port)).collect();
    let file = lab.dir().join("bare");
    fs::write(&file, format!("*nat\n:BARE - [0:0]\n{rules}COMMIT\n")).unwrap();
    let restore = format!("iptables-nft-restore --noflush {}", file.display());
    let gateway = lab.serving(&one);
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    // The first of each finds caches cold.
    for run in 0..=RUNS {
        let start = Instant::now();
        let digest = lab.configure(&thousand);
        gateway.carried_out(&digest);
        let took = start.elapsed();
        let digest = lab.configure(&one);
        gateway.carried_out(&digest);

        // What another does to the rules is news for the gateway: not now.
        gateway.pause(true);
        let start = Instant::now();
        lab.pod.run(&restore);
        let beside = start.elapsed();
        lab.pod.run("iptables-nft -t nat -F BARE");
        lab.pod.run("iptables-nft -t nat -X BARE");
        gateway.pause(false);
        // It looks at the rules once, and has nothing to do.
        std::thread::sleep(Duration::from_millis(300));
        if run > 0 {
            ours.push(took);
            bare.push(beside);
        }
    }
    println!("{ours:?}\n{bare:?}");
    println!("thousand-ports-ms {:.2} {:.2}", median(&mut ours), median(&mut bare));
}

/// By nftables. Ends in a line for programs to read: all of them; one of them
/// gone; 1000 ports of as many endpoints, five each.
#[test]
#[ignore = "a measurement: make bench"]
fn five_thousand_endpoints() {
    let lab = Lab::new();
    let address =
        |number: usize| format!("10.{}.{}.{}", 64 + number / 62_500, number / 250 % 250, number % 250 + 1);
    let subset = |ports: &[u16], numbers: std::ops::Range<usize>| {
        let ports: Vec<Value> =
            ports.iter().map(|port| json!({"protocol": "TCP", "port": port, "targetPort": 8080})).collect();
        json!({"ports": ports, "addresses": numbers.map(address).collect::<Vec<_>>()})
    };
    let direct = |ports: &[u16], subsets: &[Value]| {
        let ports: Vec<(&str, u16)> = ports.iter().map(|port| ("TCP", *port)).collect();
        let mut config = config_direct(&ports, &json!(subsets));
        config["natBackend"] = json!("nftables");
        config
    };
    let none = direct(&[80], &[]);
    let all = direct(&[80], &[subset(&[80], 0..5000)]);
    let less = direct(&[80], &[subset(&[80], 1..5000)]);
    let ports: Vec<u16> = (1000..2000).collect();
    let each = |(at, port): (usize, &u16)| subset(&[*port], at * 5..at * 5 + 5);
    let many = direct(&ports, &ports.iter().enumerate().map(each).collect::<Vec<_>>());
    let gateway = lab.serving(&none);
    // What the gateway itself says of the time from noticing to having verified.
    let apply = |gateway: &Gateway, config: &Value| {
        let spent = || {
            let (_, body) = gateway.get("/metrics").unwrap();
            let sum = body.lines().find_map(|line| line.strip_prefix("lb_svc_gateway_apply_seconds_sum "));
            Duration::from_secs_f64(sum.unwrap().parse().unwrap())
        };
        let before = spent();
        gateway.carried_out(&lab.configure(config));
        let took = spent() - before;
        // What it hears of its own change is looked at once.
        std::thread::sleep(Duration::from_millis(300));
        took
    };
    let (mut whole, mut one, mut spread) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..=RUNS {
        let took = [&all, &less, &none, &many, &none].map(|config| apply(&gateway, config));
        if run > 0 {
            whole.push(took[0]);
            one.push(took[1]);
            spread.push(took[3]);
        }
    }
    println!("{whole:?}\n{one:?}\n{spread:?}");
    println!("endpoints-ms {:.2} {:.2} {:.2}", median(&mut whole), median(&mut one), median(&mut spread));
}

/// A server of bytes: as many as the client's request says, and the end. `skip` bytes
/// come before the request.
fn serve_bytes(netns: &Netns, at: &str, skip: usize) {
    let at: SocketAddr = at.parse().unwrap();
    let listener = netns.enter(|| TcpListener::bind(at)).unwrap();
    let serve = move |mut stream: TcpStream| -> io::Result<()> {
        let mut head = vec![0; skip + 8];
        stream.read_exact(&mut head)?;
        let mut left = u64::from_be_bytes(head[skip..].try_into().unwrap());
        let chunk = vec![7; 128 * 1024];
        while left > 0 {
            let now = left.min(chunk.len() as u64);
            stream.write_all(&chunk[..usize::try_from(now).unwrap()])?;
            left -= now;
        }
        Ok(())
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || serve(stream));
        }
    });
}

/// Asks for so many bytes and reads them.
fn fetch(to: SocketAddr, bytes: u64, buffer: &mut [u8]) -> io::Result<()> {
    let mut stream = TcpStream::connect(to)?;
    stream.write_all(&bytes.to_be_bytes())?;
    let mut got = 0;
    loop {
        match stream.read(buffer)? {
            0 => break,
            count => got += count as u64,
        }
    }
    if got == bytes { Ok(()) } else { Err(ErrorKind::UnexpectedEof.into()) }
}

/// The proxy beside the masquerade: throughput of one connection, and new connections a
/// second of four at a time, of which the server closes each. Ends in a line for programs
/// to read.
#[test]
#[ignore = "a measurement: make bench"]
fn proxy_beside_the_masquerade() {
    const BYTES: u64 = 256 << 20;
    const RUNS: usize = 5;
    let lab = Lab::new();
    serve_bytes(&lab.node, &format!("{CLUSTER_IP}:9001"), 28);
    serve_bytes(&lab.node, &format!("{CLUSTER_IP}:9000"), 0);
    let (mut both, mut plain) = (config(&[("TCP", 9001)]), config(&[("TCP", 9000)]));
    both["version"] = json!(7);
    both["frontends"][0]["proxyProtocol"] = json!("v2");
    both["frontends"].as_array_mut().unwrap().push(plain["frontends"][0].take());
    let gateway = lab.serving(&both);
    let ways = [9001, 9000].map(|port| SocketAddr::new(VIP.parse().unwrap(), port));
    let throughput = |to: SocketAddr| {
        lab.client.enter(|| {
            let started = Instant::now();
            fetch(to, BYTES, &mut vec![0; 256 * 1024]).unwrap();
            BYTES as f64 / started.elapsed().as_secs_f64() / f64::from(1 << 20)
        })
    };
    let rate = |to: SocketAddr| {
        let until = Instant::now() + Duration::from_secs(2);
        let count = |_| {
            lab.client.enter(|| {
                let mut buffer = [0; 64];
                let mut count = 0;
                while Instant::now() < until {
                    fetch(to, 16, &mut buffer).unwrap();
                    count += 1;
                }
                count
            })
        };
        let counts: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|n| scope.spawn(move || count(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        counts.iter().sum::<u64>() as f64 / 2.0
    };
    let mut results = [const { Vec::new() }; 4];
    for run in 0..=RUNS {
        let values = [throughput(ways[0]), throughput(ways[1]), rate(ways[0]), rate(ways[1])];
        println!("{values:.0?}");
        // The first finds caches cold.
        for (all, value) in results.iter_mut().zip(values).filter(|_| run > 0) {
            all.push(value);
        }
    }
    let medians = results.map(|mut all| {
        all.sort_by(f64::total_cmp);
        format!("{:.1}", all[all.len() / 2])
    });
    assert_eq!(gateway.metric("lb_svc_gateway_proxy_refused_total{reason=\"full\"}"), 0);
    println!("proxy {}", medians.join(" "));
}
