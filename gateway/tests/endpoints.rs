//! Straight to endpoints: the real gateway on a real kernel. Needs root;
//! `make netns` runs it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use lab::{Lab, Netns, POD_IP, VIP, ask, config, config_direct, exchange, nat_backend, wait};
use serde_json::{Value, json};

fn pod(number: usize) -> String {
    format!("10.17.{}.{}", number / 200, number % 200 + 1)
}

fn pods(numbers: impl IntoIterator<Item = usize>) -> Vec<String> {
    numbers.into_iter().map(pod).collect()
}

/// Ports 80 and 53 on pods' 8080 and 5353.
fn direct(live: &[usize], draining: &[usize]) -> Value {
    let (live, draining) = (pods(live.iter().copied()), pods(draining.iter().copied()));
    let ports = json!([
        {"protocol": "TCP", "port": 80, "targetPort": 8080},
        {"protocol": "UDP", "port": 53, "targetPort": 5353},
    ]);
    let subsets = json!([{"ports": ports, "addresses": live, "draining": draining}]);
    config_direct(&[("TCP", 80), ("UDP", 53), ("TCP", 81)], &subsets)
}

fn tcp(host: &Netns) -> std::io::Result<String> {
    host.tcp(&format!("{VIP}:80"))
}

/// The pod that an answer is from.
fn who(answer: &str) -> &str {
    answer.split([' ', ':']).nth(1).unwrap()
}

#[test]
fn endpoints_are_served_without_a_cluster_ip() {
    let lab = Lab::new();
    let endpoints: Vec<_> = (0..4).map(|number| lab.endpoint(&pod(number), &[8080, 5353])).collect();
    let main = lab.pod.lines("ip route");
    let gateway = lab.serving(&direct(&[0, 1, 2, 3], &[]));
    assert_eq!(lab.pod.lines("ip rule")[1], "32762:\tfrom all iif net1 lookup main");
    assert_eq!(
        lab.pod.lines("ip route show table 100"),
        ["default via 172.18.0.1 dev net1", "172.18.0.0/16 dev net1 scope link"]
    );
    assert_eq!(lab.pod.lines("ip route"), main, "the pod's own table is not ours");
    for host in [&lab.client, &lab.far] {
        let mut seen = BTreeMap::new();
        for _ in 0..100 {
            let answer = tcp(host).unwrap();
            assert!(answer.ends_with(&format!(":8080 saw {POD_IP}")), "{answer}");
            *seen.entry(who(&answer).to_owned()).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
        let answer = exchange(&host.udp(), &format!("{VIP}:53")).unwrap();
        assert!(answer.contains(":5353 saw"), "{answer}");
        // Nobody serves it.
        assert_eq!(host.tcp(&format!("{VIP}:81")).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        host.run(&format!("ping -c 1 -W 1 {VIP}"));
    }
    assert!(gateway.status().unwrap().faults.is_empty());
    assert_eq!(gateway.metric("lb_svc_gateway_converges_total{outcome=\"changed\"}"), 1);
    let labels = format!("service=\"default/test-service\",address=\"{VIP}\",protocol=\"tcp\",port=\"80\"");
    assert_eq!(gateway.metric(&format!("lb_svc_gateway_endpoints{{{labels},state=\"live\"}}")), 4);

    // Whoever damages it, it is whole again.
    let good = lab.state();
    let damages = match nat_backend().as_str() {
        "iptables" => ["iptables -t nat -F LB-SVC-AC120012-TCP-80", "iptables -t nat -F"],
        _ => ["nft flush map ip lb-svc slots", "nft flush chain ip lb-svc spread-4"],
    };
    for damage in damages.into_iter().chain(["ip rule del pref 32762"]) {
        lab.pod.run(damage);
        wait(damage, || (lab.state() == good).then_some(()));
        tcp(&lab.client).unwrap();
    }

    // What another process left is taken over, or goes.
    gateway.kill();
    tcp(&lab.client).unwrap();
    let gateway = lab.serving(&direct(&[1], &[]));
    assert_eq!(who(&tcp(&lab.client).unwrap()), pod(1));
    let rest = lab.nat();
    assert!(!rest.contains("spread-4") && !rest.contains(&pod(0)), "{rest}");
    // Back to the ClusterIP.
    let digest = lab.configure(&config(&[("TCP", 80)]));
    gateway.carried_out(&digest);
    assert!(tcp(&lab.client).unwrap().contains(lab::CLUSTER_IP));
    assert!(!lab.pod.run("ip rule").contains("32762"));
    drop(endpoints);
}

#[test]
fn an_endpoint_that_goes_gets_nothing_new_and_keeps_what_comes_to_an_end() {
    let lab = Lab::new();
    let endpoints: Vec<_> = (0..3).map(|number| lab.endpoint(&pod(number), &[8080, 5353])).collect();
    let gateway = lab.serving(&direct(&[0], &[]));
    let mut stream = lab.client.connect(&format!("{VIP}:80")).unwrap();
    let socket = lab.far.udp();
    let udp = || exchange(&socket, &format!("{VIP}:53")).map(|answer| who(&answer).to_owned());
    let answer = ask(&mut stream).unwrap();
    assert_eq!((who(&answer), udp()), (pod(0).as_str(), Some(pod(0))));

    // More of them: nobody moves.
    gateway.carried_out(&lab.configure(&direct(&[0, 1, 2], &[])));
    assert_eq!((ask(&mut stream).unwrap(), udp()), (answer.clone(), Some(pod(0))));
    assert_eq!(gateway.metric("lb_svc_gateway_conntrack_cut_total"), 0);

    // On its way out.
    gateway.carried_out(&lab.configure(&direct(&[1], &[0, 2])));
    for _ in 0..20 {
        assert_eq!(who(&tcp(&lab.client).unwrap()), pod(1));
    }
    assert_eq!((ask(&mut stream).unwrap(), udp()), (answer, Some(pod(1))));
    // Gone: its client hears of it with the next that he sends.
    gateway.carried_out(&lab.configure(&direct(&[1], &[])));
    wait("the connection to end", || ask(&mut stream).is_err().then_some(()));

    // Nobody is left: refused at once, and served as soon as somebody is back.
    gateway.carried_out(&lab.configure(&direct(&[], &[])));
    assert_eq!(tcp(&lab.client).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(udp(), None);
    gateway.carried_out(&lab.configure(&direct(&[2], &[])));
    assert_eq!((who(&tcp(&lab.client).unwrap()), udp()), (pod(2).as_str(), Some(pod(2))));
    drop(endpoints);
}

/// How many of so many flows each pod got. They are of clients that have not
/// been there before: the kernel leads who is known where he was.
fn spread(lab: &Lab, round: usize, flows: usize) -> BTreeMap<String, usize> {
    let clients: Vec<String> = (1..=20).map(|last| format!("172.18.{}.{last}", round + 8)).collect();
    for client in &clients {
        lab.client.run(&format!("ip addr add {client}/16 dev eth0"));
    }
    lab.client.enter(|| {
        let mut seen = BTreeMap::new();
        let mut buffer = [0; 200];
        for flow in 0..flows {
            let socket = UdpSocket::bind((clients[flow % clients.len()].as_str(), 0)).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            socket.send_to(b"hello", format!("{VIP}:53")).unwrap();
            let (length, _) = socket.recv_from(&mut buffer).unwrap();
            let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
            *seen.entry(who(&answer).to_owned()).or_insert(0) += 1;
        }
        seen
    })
}

#[test]
fn connections_are_spread_evenly() {
    let lab = Lab::new();
    let endpoints: Vec<_> = (0..50).map(|number| lab.endpoint(&pod(number), &[5353])).collect();
    let gateway = lab.serving(&direct(&[], &[]));
    const FLOWS: usize = 10_000;
    for (round, (count, percent)) in [(4, 15), (50, 35)].into_iter().enumerate() {
        gateway.carried_out(&lab.configure(&direct(&(0..count).collect::<Vec<_>>(), &[])));
        let seen = spread(&lab, round, FLOWS);
        let share = FLOWS / count;
        let off = |got: &usize| got.abs_diff(share) * 100 / share;
        assert_eq!(seen.len(), count);
        assert!(seen.values().all(|got| off(got) <= percent), "{seen:?}");
    }
    drop(endpoints);
}

#[test]
fn a_client_stays_with_its_endpoint_where_that_is_asked() {
    if nat_backend() != "nftables" {
        // It is the controller that asks nftables for it.
        return;
    }
    let lab = Lab::new();
    let endpoints: Vec<_> = (0..4).map(|number| lab.endpoint(&pod(number), &[8080, 5353])).collect();
    let sticky = |live: &[usize], seconds: u32| {
        let mut config = direct(live, &[]);
        config["frontends"][0]["target"]["affinitySeconds"] = json!(seconds);
        config
    };
    // Many clients: addresses of the LAN that the client takes on.
    let clients: Vec<String> = (100..140).map(|last| format!("172.18.7.{last}")).collect();
    for client in &clients {
        lab.client.run(&format!("ip addr add {client}/16 dev eth0"));
    }
    let homes = || -> Vec<String> {
        let home = |client: &String| {
            let socket = lab.client.enter(|| UdpSocket::bind((client.as_str(), 0))).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            who(&exchange(&socket, &format!("{VIP}:53")).unwrap()).to_owned()
        };
        clients.iter().map(home).collect()
    };
    let gateway = lab.serving(&sticky(&[0, 1, 2, 3], 3600));
    let first = homes();
    let distinct: std::collections::BTreeSet<&String> = first.iter().collect();
    assert_eq!(distinct.len(), 4, "they are spread: {first:?}");
    assert_eq!(homes(), first);
    // TCP and UDP are two ports, each with its own.
    let home = who(&tcp(&lab.client).unwrap()).to_owned();
    for _ in 0..20 {
        assert_eq!(who(&tcp(&lab.client).unwrap()), home);
    }

    // One goes: its clients move and stay, the others keep theirs.
    gateway.carried_out(&lab.configure(&sticky(&[0, 2, 3], 3600)));
    let second = homes();
    for (before, after) in first.iter().zip(&second) {
        assert!(*after == *before || *before == pod(1), "{before} {after}");
        assert_ne!(*after, pod(1));
    }
    assert_eq!(homes(), second);
    // It comes back: nobody moves. Nor with another process, or after damage.
    gateway.carried_out(&lab.configure(&sticky(&[0, 1, 2, 3], 1800)));
    assert_eq!(homes(), second);
    gateway.kill();
    let gateway = lab.serving(&sticky(&[0, 1, 2, 3], 1800));
    assert_eq!(homes(), second);
    lab.pod.run("nft flush map ip lb-svc picks");
    wait("the picks to be back", || {
        lab.pod.run("nft list map ip lb-svc picks").contains("elements").then_some(())
    });
    assert_eq!(homes(), second);

    // What another pod of the gateway would do with clients it has never seen.
    let known = ["clients", "fresh"].map(|map| format!("nft list map ip lb-svc {map}"));
    let forget = || known.iter().for_each(|list| drop(lab.pod.run(&list.replace("list", "flush"))));
    forget();
    gateway.carried_out(&lab.configure(&sticky(&[0, 1, 2, 3], 1)));
    let third = homes();
    forget();
    assert_eq!(homes(), third, "by the client's address");
    // And it is forgotten in time.
    wait("clients to time out", || {
        known.iter().all(|list| !lab.pod.run(list).contains("172.18.7.1")).then_some(())
    });
    drop(endpoints);
}

#[test]
fn r43_client_that_answers_nothing_is_forgotten_after_a_minute() {
    if nat_backend() != "nftables" {
        return;
    }
    let lab = Lab::new();
    let _endpoints: Vec<_> = (0..2).map(|number| lab.endpoint(&pod(number), &[8080, 5353])).collect();
    let mut config = direct(&[0, 1], &[]);
    config["frontends"][0]["target"]["affinitySeconds"] = json!(10_800);
    let gateway = lab.serving(&config);
    let known = |map: &str, transport: &str| {
        lab.pod.run(&format!("nft list map ip lb-svc {map}")).contains(&format!("{transport} . "))
    };

    // The sender of a forged SYN: it never gets the answer, and sends the SYN again.
    lab.client.run("iptables -A INPUT -p tcp --tcp-flags SYN,ACK SYN,ACK -j DROP");
    let to: SocketAddr = format!("{VIP}:80").parse().unwrap();
    let connected = lab.client.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(1500)));
    assert!(connected.is_err());
    assert!(known("fresh", "tcp") && !known("clients", "tcp"));
    let left = lab.pod.run("nft list map ip lb-svc fresh");
    assert!(left.contains("timeout 1m"), "{left}");
    lab.client.run("iptables -F INPUT");
    tcp(&lab.client).unwrap();
    wait("who connects to be known", || known("clients", "tcp").then_some(()));

    let socket = lab.client.udp();
    let home = exchange(&socket, &format!("{VIP}:53")).unwrap();
    assert!(known("fresh", "udp") && !known("clients", "udp"));
    exchange(&socket, &format!("{VIP}:53")).unwrap();
    assert!(known("clients", "udp"));
    // Who is known for long needs no other memory.
    lab.pod.run("nft flush map ip lb-svc fresh");
    for _ in 0..10 {
        assert_eq!(exchange(&lab.client.udp(), &format!("{VIP}:53")).unwrap(), home);
    }
    assert!(!known("fresh", "udp"));

    // Without affinity nothing of it is left.
    gateway.carried_out(&lab.configure(&direct(&[0, 1], &[])));
    assert!(!lab.nat().contains("confirming") && !lab.nat().contains("keep-"), "{}", lab.nat());
    tcp(&lab.client).unwrap();
    gateway.kill();
    let _gateway = lab.serving(&config);
    wait("affinity again", || lab.nat().contains("chain confirming").then_some(()));
}

#[test]
fn who_is_not_well_gets_nothing_new_while_another_is() {
    let lab = Lab::new();
    let first = lab.endpoint(&pod(0), &[8080]);
    let second = lab.endpoint(&pod(1), &[8080]);
    let checked = || {
        let mut config = direct(&[0, 1, 2], &[]);
        config["frontends"][0]["target"]["check"] =
            json!({"intervalMs": 100, "timeoutMs": 100, "rise": 2, "fall": 2});
        config
    };
    let gateway = lab.serving(&checked());
    let unhealthy = |numbers: &[usize]| {
        let expected: Vec<String> = numbers.iter().map(|number| format!("{}:8080", pod(*number))).collect();
        wait(&format!("{numbers:?} to be unwell"), || {
            let status = gateway.status()?;
            let unhealthy = status.unhealthy.iter().map(ToString::to_string);
            (unhealthy.collect::<Vec<_>>() == expected).then_some(())
        });
    };
    let seen = || -> std::collections::BTreeSet<String> {
        (0..30).map(|_| who(&tcp(&lab.client).unwrap()).to_owned()).collect()
    };
    unhealthy(&[2]);
    assert_eq!(seen(), pods([0, 1]).into_iter().collect());
    let mut stream = lab.client.connect(&format!("{VIP}:80")).unwrap();
    let mut streams = vec![(who(&ask(&mut stream).unwrap()).to_owned(), stream)];
    while !streams.iter().any(|(pod, _)| *pod == self::pod(1)) {
        let mut stream = lab.client.connect(&format!("{VIP}:80")).unwrap();
        streams.push((who(&ask(&mut stream).unwrap()).to_owned(), stream));
    }

    // It does not accept any more, but goes on with those that it has.
    drop(second);
    unhealthy(&[1, 2]);
    assert_eq!(seen(), pods([0]).into_iter().collect());
    assert_eq!(gateway.metric("lb_svc_gateway_conntrack_cut_total"), 0);
    for (_, stream) in &mut streams {
        ask(stream).unwrap();
    }

    // All: all are tried.
    drop(first);
    unhealthy(&[0, 1, 2]);
    let again = lab.endpoint(&pod(2), &[8080]);
    unhealthy(&[0, 1]);
    assert_eq!(seen(), pods([2]).into_iter().collect());
    drop(again);
}

/// Answers HTTP requests for `/healthz` on port 8080 of a pod.
fn http(lab: &Lab, answer: &'static str, number: usize) {
    let at = format!("{}:8080", pod(number));
    lab.node.attempt(&format!("ip addr add {}/32 dev lo", pod(number)));
    let listener = lab.node.enter(|| TcpListener::bind(&at)).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut request = [0; 1000];
            let length = stream.read(&mut request).unwrap_or_default();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let answer = if request.starts_with("GET /healthz ") { answer } else { "404 Not Found" };
            let _ = write!(stream, "HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
        }
    });
}

/// The LAN's IPAM gave the pod an address there, and the routes that come with it. The
/// endpoint is a node's own address, of the same network.
#[test]
fn b12_endpoint_with_an_address_of_the_lan_is_reached_by_the_pod_network() {
    const NODE: &str = "172.18.0.77";
    let lab = Lab::new();
    lab.pod.run("ip link set net1 up");
    lab.pod.run("ip addr add 172.18.200.5/16 dev net1");
    lab.pod.run("ip route add default via 10.16.0.1 metric 100");
    lab.pod.run("ip route del default metric 0");
    lab.pod.run("ip route add default via 172.18.0.1 dev net1");
    let network = json!({"name": lab::ATTACHMENT, "interface": "net1", "ips": ["172.18.200.5"]});
    lab.report(&json!([network]));
    let _endpoints = [lab.endpoint(NODE, &[8080, 5353]), lab.endpoint(&pod(0), &[8080, 5353])];
    let mut config = direct(&[0], &[]);
    let target = &mut config["frontends"][0]["target"];
    target["subsets"][0]["addresses"] = json!([NODE, pod(0)]);
    target["check"] = json!({"intervalMs": 200, "timeoutMs": 200, "rise": 1, "fall": 1});
    let gateway = lab.serving(&config);
    wait("both to be healthy", || gateway.status()?.unhealthy.is_empty().then_some(()));
    for host in [&lab.client, &lab.far] {
        let mut seen = BTreeMap::new();
        for _ in 0..40 {
            *seen.entry(who(&tcp(host).unwrap()).to_owned()).or_insert(0) += 1;
            assert!(exchange(&host.udp(), &format!("{VIP}:53")).is_some());
        }
        assert_eq!(seen.len(), 2, "{seen:?}");
    }
    assert_eq!(lab.pod.lines("ip rule")[1], "32762:\tfrom all iif net1 lookup 32762");
    // As before, once the LAN has no routes in the pod any more.
    lab.pod.run("ip addr del 172.18.200.5/16 dev net1");
    lab.pod.run("ip route flush table main dev net1");
    wait("the pod's own table", || {
        let rules = lab.pod.lines("ip rule");
        let own = lab.pod.attempt("ip route show table 32762").1;
        (rules[1] == "32762:\tfrom all iif net1 lookup main" && !own.contains("via")).then_some(())
    });
    wait("an answer", || tcp(&lab.client).ok());
}

#[test]
fn b15_port_that_speaks_no_http_is_judged_by_the_one_that_does() {
    let lab = Lab::new();
    http(&lab, "200 OK", 0);
    http(&lab, "503 Service Unavailable", 1);
    let _endpoints: Vec<_> = (0..2).map(|number| lab.endpoint(&pod(number), &[8443, 5353])).collect();
    let ports = json!([
        {"protocol": "TCP", "port": 80, "targetPort": 8080},
        {"protocol": "TCP", "port": 443, "targetPort": 8443},
        {"protocol": "UDP", "port": 53, "targetPort": 5353},
    ]);
    let subsets = json!([{"ports": ports, "addresses": pods([0, 1])}]);
    let mut config = config_direct(&[("TCP", 80), ("TCP", 443), ("UDP", 53)], &subsets);
    config["frontends"][0]["target"]["check"] =
        json!({"path": "/healthz", "port": 80, "intervalMs": 100, "timeoutMs": 100, "rise": 1, "fall": 1});
    let gateway = lab.serving(&config);
    wait("the answer to be judged", || {
        let unhealthy = gateway.status()?.unhealthy;
        (unhealthy.iter().map(ToString::to_string).collect::<Vec<_>>() == [format!("{}:8080", pod(1))])
            .then_some(())
    });
    for _ in 0..10 {
        assert_eq!(who(&lab.client.tcp(&format!("{VIP}:443")).unwrap()), pod(0));
        assert_eq!(who(&exchange(&lab.client.udp(), &format!("{VIP}:53")).unwrap()), pod(0));
    }
}

#[test]
fn an_answer_of_http_is_judged_by_its_code() {
    let lab = Lab::new();
    http(&lab, "200 OK", 0);
    http(&lab, "503 Service Unavailable", 1);
    http(&lab, "302 Found", 2);
    let mut config = direct(&[0, 1, 2], &[]);
    config["frontends"][0]["target"]["check"] =
        json!({"path": "/healthz", "intervalMs": 100, "timeoutMs": 100, "rise": 1, "fall": 1});
    let gateway = lab.serving(&config);
    wait("the answer to be judged", || {
        let unhealthy = gateway.status()?.unhealthy;
        (unhealthy.iter().map(ToString::to_string).collect::<Vec<_>>() == [format!("{}:8080", pod(1))])
            .then_some(())
    });
}

/// How many connections clients of very many addresses make in this time, and
/// how many of them not at once. Whom they reach closes them first.
fn hurry(lab: &Lab, seconds: u64) -> (usize, usize) {
    let to: SocketAddr = format!("{VIP}:80").parse().unwrap();
    let visit = |client: usize| {
        let from = SocketAddr::from(([198, 18, (client / 200) as u8, (client % 200) as u8 + 1], 0));
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.bind(&from.into())?;
        socket.connect_timeout(&to.into(), Duration::from_secs(2))?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(b"hello")?;
        stream.read_to_string(&mut String::new())
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    let one = |thread: usize| {
        let (mut done, mut late) = (0, 0);
        for client in (thread..).step_by(3001).map(|number| number % 20_000) {
            let start = Instant::now();
            if start >= end {
                break;
            }
            done += usize::from(visit(client).is_ok());
            late += usize::from(start.elapsed() > Duration::from_millis(900));
        }
        (done, late)
    };
    lab.far.enter(|| {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16).map(|thread| scope.spawn(move || one(thread))).collect();
            let counts = threads.into_iter().map(|thread| thread.join().unwrap());
            counts.fold((0, 0), |all, more| (all.0 + more.0, all.1 + more.1))
        })
    })
}

#[test]
fn a_crowded_target_does_without_timestamps() {
    let lab = Lab::new();
    lab.node.run(&format!("ip addr add {}/32 dev lo", pod(0)));
    let listener = lab.node.enter(|| TcpListener::bind(format!("{}:8080", pod(0)))).unwrap();
    for listener in (0..4).map(|_| listener.try_clone().unwrap()) {
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let mut word = [0; 5];
                let _ = stream.read_exact(&mut word).and_then(|()| stream.write_all(&word));
            }
        });
    }
    lab.router.run("ip route add 198.18.0.0/16 via 192.168.99.2");
    lab.far.run("ip route add local 198.18.0.0/16 dev lo");
    let gateway = lab.serving(&direct(&[0], &[]));
    let table = || lab.pod.attempt("nft list table ip lb-svc-crowded");
    let start = Instant::now();
    let mut done = 0;
    while !table().0 {
        assert!(start.elapsed() < Duration::from_secs(55), "after {done} connections");
        done += hurry(&lab, 1).0;
    }
    assert!(done > 40_000, "{done}");
    let (_, crowded) = table();
    assert!(crowded.contains(&format!("{} . 8080", pod(0))), "{crowded}");

    // Until every port is taken, and beyond.
    while done < 70_000 {
        assert!(start.elapsed() < Duration::from_secs(55), "after {done} connections");
        done += hurry(&lab, 1).0;
    }
    let (more, late) = hurry(&lab, 5);
    println!("{more} in 5 s, {late} of them late");
    assert!(more > 2_500 && late * 200 < more, "{more} {late}");
    let labels = format!("service=\"default/test-service\",address=\"{VIP}\",protocol=\"tcp\",port=\"80\"");
    let taken = gateway.metric(&format!("lb_svc_gateway_source_ports{{{labels}}}"));
    assert!(taken > 60_000, "{taken}");

    lab.pod.run("conntrack -F");
    let start = Instant::now();
    while table().0 {
        // The more there was to look at, the later it looks again: ten times as
        // long as it took, which is seconds here.
        assert!(start.elapsed() < Duration::from_secs(90));
        std::thread::sleep(Duration::from_millis(100));
    }
}
