//! The real gateway on a real kernel: netlink, NAT and packets, with `ip` and
//! `iptables` as witnesses. Needs root; `make netns` runs it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod lab;

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use lab::{
    ATTACHMENT, CLUSTER_IP, HEALED, Lab, OTHER_CLUSTER_IP, POD_IP, VIP, address, ask, config, config_by,
    config_direct, config_to, exchange, nat_backend, wait,
};
use lb_svc_gateway::l2::arp::{self, Frame};
use lb_svc_gateway::l2::socket::FrameSender;
use nix::libc;
use nix::sys::socket::{MsgFlags, recv};
use serde_json::{Value, json};

#[test]
fn the_pod_shows_what_is_documented_and_serves_it() {
    let lab = Lab::new();
    let main = lab.pod.lines("ip route");
    let config = config(&[("TCP", 8080), ("TCP", 80), ("TCP", 53), ("UDP", 53)]);
    let gateway = lab.serving(&config);

    assert_eq!(
        lab.pod.lines("ip rule"),
        [
            "0:\tfrom all lookup local",
            "32763:\tfrom 172.18.0.18 lookup 100",
            "32764:\tfrom all iif eth0 lookup 100",
            "32765:\tfrom all iif net1 lookup 100",
            "32766:\tfrom all lookup main",
            "32767:\tfrom all lookup default",
        ]
    );
    assert_eq!(
        lab.pod.lines("ip route show table 100"),
        [
            "default via 172.18.0.1 dev net1",
            "10.109.201.193 via 10.16.0.1 dev eth0",
            "172.18.0.0/16 dev net1 scope link",
        ]
    );
    assert_eq!(lab.pod.lines("ip route"), main, "the pod's own table is not ours");
    let nat = lab.nat();
    let by_iptables = nat_backend() == "iptables";
    for (protocol, port) in [("tcp", 80), ("tcp", 8080), ("tcp", 53), ("udp", 53)] {
        let line = if by_iptables {
            format!(
                "-A LB-SVC-DNAT -d {VIP}/32 -p {protocol} -m {protocol} --dport {port} -j DNAT --to-destination {CLUSTER_IP}:{port}\n"
            )
        } else {
            format!("{VIP} . {protocol} . {port} : {CLUSTER_IP} . {port}")
        };
        assert!(nat.contains(&line), "{line}: {nat}");
    }
    let line = if by_iptables {
        format!("-A LB-SVC-SNAT -d {CLUSTER_IP}/32 -j MASQUERADE\n")
    } else {
        "oifname != \"net1\" ct status dnat masquerade\n".to_owned()
    };
    assert!(nat.contains(&line), "{nat}");

    // From the LAN, and from behind its router.
    for client in [&lab.client, &lab.far] {
        for port in [80, 8080, 53] {
            let answer = client.tcp(&format!("{VIP}:{port}")).unwrap();
            assert_eq!(answer, format!("tcp {CLUSTER_IP}:{port} saw {POD_IP}"));
        }
        let answer = exchange(&client.udp(), &format!("{VIP}:53")).unwrap();
        assert_eq!(answer, format!("udp {CLUSTER_IP}:53 saw {POD_IP}"));
        client.run(&format!("ping -c 1 -W 1 {VIP}"));
        // What is not served refuses at once.
        let refused = client.tcp(&format!("{VIP}:81")).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(exchange(&client.udp(), &format!("{VIP}:80")), None);
    }

    let status = gateway.status().unwrap();
    let interface = status.interface.unwrap();
    assert_eq!((interface.name.as_str(), interface.mac), ("net1", lab.mac()));
    assert_eq!(status.addresses, [VIP.parse::<std::net::IpAddr>().unwrap()]);
    assert!(status.faults.is_empty(), "{:?}", status.faults);
    assert_eq!(gateway.get("/readyz").unwrap(), (200, "ok\n".to_owned()));
    // Converged is converged: nothing more is done.
    let changed = "lb_svc_gateway_converges_total{outcome=\"changed\"}";
    assert_eq!(gateway.metric(changed), 1);
}

#[test]
fn what_is_programmed_is_left_alone() {
    let lab = Lab::new();
    let config = config(&[("TCP", 80), ("UDP", 53)]);
    let gateway = lab.serving(&config);
    for table in ["traffic", "timeouts"] {
        let list = format!("nft list table ip lb-svc-{table}");
        wait(table, || lab.pod.attempt(&list).0.then_some(()));
    }
    // What is programmed side by side is not taken for others' work for ever.
    wait("nothing to be written any more", || {
        let (_, written) = lab.pod.attempt("timeout 1 nft monitor");
        written.is_empty().then_some(())
    });
    drop(gateway);
}

#[test]
fn ports_and_cluster_ips_change_under_a_client_that_keeps_its_port() {
    let lab = Lab::new();
    let both = [("UDP", 53), ("TCP", 80)];
    let gateway = lab.serving(&config(&both));
    let to = format!("{VIP}:53");
    let client = lab.client.udp();
    let from = |ip: &str| Some(format!("udp {ip}:53 saw {POD_IP}"));
    assert_eq!(exchange(&client, &to), from(CLUSTER_IP));

    // Removed, while the client keeps on sending.
    let digest = lab.configure(&config(&both[1..]));
    gateway.carried_out(&digest);
    assert_eq!(exchange(&client, &to), None);
    assert_eq!(exchange(&client, &to), None);
    assert!(gateway.metric("lb_svc_gateway_conntrack_cut_total") >= 1);
    lab.client.tcp(&format!("{VIP}:80")).unwrap();

    // Back again: at once.
    let digest = lab.configure(&config(&both));
    gateway.carried_out(&digest);
    assert_eq!(exchange(&client, &to), from(CLUSTER_IP));

    // Another ClusterIP.
    let digest = lab.configure(&config_to(OTHER_CLUSTER_IP, &both));
    let took = gateway.carried_out(&digest);
    assert_eq!(exchange(&client, &to), from(OTHER_CLUSTER_IP));
    let routes = lab.pod.run("ip route show table 100");
    assert!(routes.contains(OTHER_CLUSTER_IP) && !routes.contains(CLUSTER_IP), "{routes}");
    println!("a changed ClusterIP was carried out in {took:?}");
}

#[test]
fn drift_is_healed() {
    let lab = Lab::new();
    let gateway = lab.serving(&config(&[("TCP", 80)]));
    let good = lab.state();
    let good_settings = settings(&lab);
    let damages = [
        ("nat", "nft flush ruleset"),
        ("nat", "nft delete table ip lb-svc-filter"),
        ("nat", "nft flush chain ip lb-svc-filter passing"),
        ("nat", "nft insert rule ip lb-svc-filter own accept"),
        ("nat", "nft flush chain ip lb-svc-filter errors"),
        ("nat", "nft flush table ip6 lb-svc-filter"),
        ("route", "ip route flush table 100"),
        ("route", "ip route del 10.109.201.193 table 100"),
        ("route", "ip route add 192.0.2.0/24 via 10.16.0.1 table 100"),
        ("route", "ip route append default via 10.16.0.1 table 100"),
        ("rule", "ip rule del pref 32763"),
        ("rule", "ip rule del pref 32764"),
        ("rule", "ip rule del pref 32765"),
        ("rule", "ip rule add from 192.0.2.1 lookup 100 pref 99"),
        ("address", "ip addr flush dev net1"),
        ("address", "ip addr add 172.18.0.99/16 dev net1"),
        ("link", "ip link set net1 down"),
        ("devconf", "sysctl -qw net.ipv4.conf.net1.forwarding=0"),
        ("devconf", "sysctl -qw net.ipv4.conf.eth0.rp_filter=1"),
        ("devconf", "sysctl -qw net.ipv4.conf.net1.accept_local=0"),
        ("devconf", "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.ip_forward=0"),
    ];
    let of_the_nat: &[&str] = match nat_backend().as_str() {
        "iptables" => &[
            "iptables -t nat -F",
            "iptables -t nat -F LB-SVC-DNAT",
            "iptables -t nat -D PREROUTING -j LB-SVC-DNAT",
            "iptables -t nat -I PREROUTING -j LB-SVC-DNAT",
        ],
        _ => &[
            "nft delete table ip lb-svc",
            "nft flush table ip lb-svc",
            "nft flush chain ip lb-svc arriving",
            "nft flush map ip lb-svc targets",
        ],
    };
    for (kind, damage) in of_the_nat.iter().map(|damage| ("nat", *damage)).chain(damages) {
        let repairs = format!("lb_svc_gateway_repairs_total{{kind=\"{kind}\"}}");
        let before = gateway.metric(&repairs);
        let start = Instant::now();
        lab.pod.run(damage);
        wait(damage, || {
            let whole = lab.state() == good && settings(&lab) == good_settings;
            (whole && gateway.metric(&repairs) > before).then_some(())
        });
        let took = start.elapsed();
        assert!(took < HEALED, "{damage} took {took:?}");
        println!("{damage}: healed in {took:?}");
        lab.client.tcp(&format!("{VIP}:80")).unwrap();
    }
}

fn settings(lab: &Lab) -> String {
    let keys = [
        "net1.forwarding",
        "eth0.forwarding",
        "net1.rp_filter",
        "eth0.rp_filter",
        "net1.accept_local",
        "eth0.accept_local",
        "net1.arp_ignore",
        "eth0.arp_ignore",
        "net1.arp_announce",
        "eth0.arp_announce",
        "net1.accept_redirects",
        "net1.send_redirects",
    ];
    let keys: Vec<String> = keys.iter().map(|key| format!("net.ipv4.conf.{key}")).collect();
    lab.pod.run(&format!("sysctl {}", keys.join(" ")))
}

#[test]
fn a_restart_takes_over_what_is_there() {
    let lab = Lab::new();
    let config = config(&[("TCP", 80)]);
    let gateway = lab.serving(&config);
    let good = lab.state();
    // With the handles, which are new when rules are.
    let by_iptables = || lab.pod.attempt("nft -a -s list table ip nat");
    let rules = by_iptables();
    let mut stream = lab.client.connect(&format!("{VIP}:80")).unwrap();
    ask(&mut stream).unwrap();

    gateway.kill();
    assert_eq!(lab.state(), good);
    ask(&mut stream).unwrap();
    lab.client.tcp(&format!("{VIP}:80")).unwrap();

    let gateway = lab.serving(&config);
    assert_eq!(lab.state(), good);
    ask(&mut stream).unwrap();
    let changed = "lb_svc_gateway_converges_total{outcome=\"changed\"}";
    // How the kernel holds a table of nft's cannot be told beforehand: it is written once more.
    assert_eq!(gateway.metric(changed), 1, "adopted but for the tables");
    assert_eq!(by_iptables(), rules, "adopted, not done again");

    let (well, took) = gateway.terminate();
    assert!(well && took < Duration::from_secs(1), "{took:?}");
    assert_eq!(lab.state(), good);
    ask(&mut stream).unwrap();
}

#[test]
fn what_another_configuration_left_goes_and_what_is_others_stays() {
    let lab = Lab::new();
    let udp = lab.client.udp();
    let gateway = lab.serving(&config(&[("UDP", 53)]));
    assert!(exchange(&udp, &format!("{VIP}:53")).is_some());
    gateway.kill();
    for line in [
        "ip addr add 172.18.0.77/24 dev net1",
        "ip route add blackhole 198.51.100.0/24 table 100",
        "ip route add 198.51.100.0/24 via 10.16.0.1 metric 7 mtu 1300 table 100",
        "ip rule add fwmark 1 lookup 100 pref 32764",
        "iptables -t nat -N LB-SVC-OLD",
        "iptables -t nat -A LB-SVC-OLD -j RETURN",
        "iptables -t nat -A OUTPUT -j LB-SVC-OLD",
        // Not ours.
        "iptables -t nat -N MINE",
        "iptables -t nat -A PREROUTING -m comment --comment LB-SVC-DNAT -j MINE",
        "ip rule add from 192.0.2.1 lookup 101 pref 32764",
        "ip route add 198.51.100.0/24 via 10.16.0.1 table 101",
        "ip route add 203.0.113.0/24 via 10.16.0.1",
    ] {
        lab.pod.run(line);
    }
    // While nobody was there, the address moved on.
    let mut moved = config_to(OTHER_CLUSTER_IP, &[("UDP", 53)]);
    moved["addresses"] = json!([address("172.18.0.20")]);
    moved["frontends"][0]["addresses"] = json!(["172.18.0.20"]);
    let _gateway = lab.serving(&moved);

    let state = lab.state();
    for gone in [VIP, CLUSTER_IP, "172.18.0.77", "fwmark", "LB-SVC-OLD", "blackhole", "metric 7"] {
        assert!(
            !state.contains(&format!("{gone} ")) && !state.contains(&format!("{gone}/")),
            "{gone}: {state}"
        );
    }
    for stays in [
        "-A PREROUTING -m comment --comment LB-SVC-DNAT -j MINE",
        "32764:\tfrom 192.0.2.1 lookup 101",
        "203.0.113.0/24 via 10.16.0.1",
    ] {
        assert!(state.contains(stays), "{stays}: {state}");
    }
    assert!(lab.pod.run("ip route show table 101").contains("198.51.100.0/24"));
    // The old flow is cut, on the new address all is new.
    assert_eq!(exchange(&udp, &format!("{VIP}:53")), None);
    let (answer, _) = wait("the new address to answer", || exchange(&udp, "172.18.0.20:53"));
    assert_eq!(answer, format!("udp {OTHER_CLUSTER_IP}:53 saw {POD_IP}"));
}

#[test]
fn the_lan_gets_at_nothing_but_what_is_served() {
    let lab = Lab::new();
    // Something else in the pod that listens everywhere, from the beginning.
    lab.serve_tcp(&lab.pod, "0.0.0.0:7777");
    let gateway = lab.serving(&config(&[("TCP", 80)]));
    lab.client.run(&format!("ip route add 10.0.0.0/8 via {VIP}"));
    assert!(lab.node.tcp(&format!("{POD_IP}:7777")).is_ok());
    for target in [
        format!("{CLUSTER_IP}:81"),
        format!("{CLUSTER_IP}:80"),
        format!("{POD_IP}:9410"),
        format!("{POD_IP}:7777"),
        format!("{VIP}:9410"),
        format!("{VIP}:7777"),
    ] {
        let answer = lab.client.tcp(&target);
        assert!(answer.is_err(), "{target}: {answer:?}");
    }
    let (ok, _) = lab.client.attempt("ping -c 1 -W 1 10.16.0.1");
    assert!(!ok, "the pod network answers the LAN");
    let (ok, _) = lab.client.attempt(&format!("ping -c 1 -W 1 {POD_IP}"));
    assert!(!ok, "the pod's address answers the LAN");
    // Nor the other way: a pod does not get onto the LAN by it.
    lab.node.run(&format!("ip route add 172.18.0.0/16 via {POD_IP}"));
    let (ok, _) = lab.node.attempt("ping -c 1 -W 1 172.18.0.50");
    assert!(!ok, "the gateway routes pods onto the LAN");
    assert!(lab.client.tcp(&format!("{VIP}:80")).is_ok());
    assert!(gateway.status().unwrap().faults.is_empty());
}

#[test]
fn neighbours_learn_the_address_at_once() {
    let lab = Lab::new();
    let mac = lab.mac();
    let elsewhere = "02:00:00:00:00:99";
    lab.client.run(&format!("ip neigh replace {VIP} lladdr {elsewhere} dev eth0 nud stale"));
    lab.serving(&config(&[("TCP", 80)])).kill();
    let known = || lab.client.run(&format!("ip neigh show {VIP}"));
    wait("the gratuitous ARP", || known().contains(&mac).then_some(()));

    // Only for its own addresses, and never with the pod's.
    let gateway = lab.serving(&config(&[("TCP", 80)]));
    lab.client.run("ip route add 10.16.0.5/32 dev eth0");
    let _ = lab.client.attempt("ping -c 1 -W 1 10.16.0.5");
    assert!(!lab.client.run("ip neigh show 10.16.0.5").contains(&mac));
    wait("the burst", || (gateway.metric("lb_svc_gateway_announcements_total") >= 5).then_some(()));
    // A link that was away is news.
    let before = gateway.metric("lb_svc_gateway_announcements_total");
    lab.lan.run("ip link set up0 down");
    lab.lan.run("ip link set up0 up");
    wait("another burst", || {
        (gateway.metric("lb_svc_gateway_announcements_total") >= before + 3).then_some(())
    });
}

#[test]
fn b11_routes_that_the_lans_ipam_made_do_not_lead_to_cluster_ips() {
    let lab = Lab::new();
    lab.pod.run("ip addr add 172.18.0.60/16 dev net1");
    lab.pod.run("ip link set net1 up");
    lab.pod.run("ip route add 10.96.0.0/12 via 172.18.0.1 dev net1");
    lab.pod.run("ip route prepend default via 172.18.0.1 dev net1");
    let gateway = lab.serving(&config(&[("TCP", 80)]));
    let route = lab.pod.run(&format!("ip route show {CLUSTER_IP} table 100"));
    assert!(route.contains("dev eth0"), "{route}");
    assert!(lab.client.tcp(&format!("{VIP}:80")).is_ok());
    assert!(gateway.status().is_some_and(|status| status.faults.is_empty()));
}

#[test]
fn r35_pod_network_gets_no_arp_answer_for_the_address() {
    let lab = Lab::new();
    let _gateway = lab.serving(&config(&[("TCP", 80)]));
    // A host of the pod network that takes the address for a neighbour there.
    lab.node.run(&format!("ip route add {VIP}/32 dev eth0"));
    let _ = lab.node.attempt(&format!("ping -c 1 -W 1 {VIP}"));
    let neighbour = lab.node.run(&format!("ip neigh show {VIP}"));
    assert!(!neighbour.contains("lladdr"), "{neighbour}");
    // Nor does the pod claim the address in its own requests there.
    let heard = Heard::on(&lab.node);
    lab.pod.run("ip neigh flush dev eth0");
    let _ = lab.pod.attempt(&format!("ping -c 1 -W 1 -I {VIP} {CLUSTER_IP}"));
    let eth0: Value = serde_json::from_str(&lab.pod.run("ip -j link show eth0")).unwrap();
    let senders: Vec<_> = heard.from(eth0[0]["address"].as_str().unwrap());
    assert!(!senders.is_empty() && senders.iter().all(|(sender, _)| sender == POD_IP), "{senders:?}");
}

/// A router advertisement (RFC 4861) to all nodes: it is a default router, and hosts
/// make themselves an address of 2001:db8:99::/64 (RFC 4862).
fn router_advertisement() -> Vec<u8> {
    let router: std::net::Ipv6Addr = "fe80::99".parse().expect("an address");
    let all_nodes: std::net::Ipv6Addr = "ff02::1".parse().expect("an address");
    let prefix: std::net::Ipv6Addr = "2001:db8:99::".parse().expect("an address");
    // Hop limit 64; for 1800 s.
    let mut icmp = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    // Prefix information: on-link, autonomous, for an hour.
    icmp.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0]);
    icmp.extend(prefix.octets());
    let length = u8::try_from(icmp.len()).expect("48 bytes");
    let pseudo = [&router.octets()[..], &all_nodes.octets(), &[0, 0, 0, length, 0, 0, 0, 58], &icmp].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let checksum = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("a folded sum");
    icmp[2..4].copy_from_slice(&checksum.to_be_bytes());
    let ethernet = [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0x99, 0x86, 0xdd];
    let ip = [0x60, 0, 0, 0, 0, length, 58, 255];
    [&ethernet[..], &ip, &router.octets(), &all_nodes.octets(), &icmp].concat()
}

#[test]
fn b41_lan_with_ipv6_routers_changes_nothing_in_the_pod() {
    let lab = Lab::new();
    let advertise = || {
        lab.client.enter(|| FrameSender::default().send("eth0", &router_advertisement())).unwrap();
    };
    let addresses = || lab.pod.run("ip -6 -o addr show dev net1");
    let routes = || {
        let routes = lab.pod.lines("ip -6 route");
        routes.into_iter().filter(|route| route.contains("net1")).collect::<Vec<_>>()
    };
    // Before the gateway there is nothing that keeps the kernel from it.
    lab.pod.run("ip link set net1 up");
    wait("an address of the router's", || {
        advertise();
        (addresses().contains("2001:db8:99:") && routes().concat().contains("default")).then_some(())
    });
    let addresses_before = addresses();
    let address = addresses_before.split_whitespace().find(|word| word.starts_with("2001:db8:99:"));
    let address = address.unwrap().trim_end_matches("/64").to_owned();

    lab.serve_tcp(&lab.pod, "[::]:7777");
    let gateway = lab.serving(&config(&[("TCP", 80)]));
    assert_eq!((addresses(), routes()), (String::new(), Vec::new()));
    advertise();
    lab.pod.run("ip link set net1 down");
    wait("the interface", || lab.pod.run("ip link show net1").contains("state UP").then_some(()));
    advertise();
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!((addresses(), routes()), (String::new(), Vec::new()));

    // Nothing is answered, whatever address there is, nor sent.
    lab.client.run("ip -6 addr add 2001:db8:99::50/64 dev eth0 nodad");
    lab.pod.run(&format!("ip -6 addr add {address}/64 dev net1 nodad"));
    lab.client.run(&format!("ip -6 neigh replace {address} lladdr {} dev eth0", lab.mac()));
    lab.pod.run("sysctl -qw net.ipv6.conf.net1.accept_ra=2");
    assert!(lab.client.tcp(&format!("[{address}]:7777")).is_err());
    assert!(!lab.client.attempt(&format!("ping -c 1 -W 1 {address}")).0);
    assert!(lab.pod.run("ip -6 -o addr show dev net1").contains(&address), "what others configure stays");
    assert!(gateway.status().unwrap().faults.is_empty());
}

#[test]
fn b41_kernel_without_an_ipv6_filter_serves_ipv4() {
    let lab = Lab::new();
    let bin = lab.dir().join("bin");
    fs::create_dir_all(&bin).unwrap();
    // nft as on a kernel that knows no such table.
    let nft = lab.pod.run("which nft");
    let script = format!(
        "#!/bin/sh\nscript=$(cat)\ncase $script in *'table ip6 '*) echo no ip6 >&2; exit 1;; esac\nprintf '%s\\n' \"$script\" | {} \"$@\"\n",
        nft.trim()
    );
    fs::write(bin.join("nft"), script).unwrap();
    fs::set_permissions(bin.join("nft"), Permissions::from_mode(0o755)).unwrap();
    let digest = lab.configure(&config(&[("TCP", 80)]));
    let gateway = lab.start_with(&format!("PATH={}:$PATH exec \"$@\"", bin.display()));
    gateway.carried_out(&digest);
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    let status = gateway.status().unwrap();
    assert!(status.faults.is_empty(), "{:?}", status.faults);
    assert!(status.limits["Ipv6NotBlocked"].contains("no ip6"), "{:?}", status.limits);
    assert_eq!(gateway.get("/readyz").unwrap().0, 200);
}

/// A Subnet that is a slice of the LAN: its router is made up.
#[test]
fn r44_nothing_is_forwarded_before_and_without_the_filter() {
    let lab = Lab::new();
    // A pod that forwards from the beginning, with an address of an IPAM's.
    lab.pod.run("sysctl -qw net.ipv4.ip_forward=1");
    lab.pod.run("ip addr add 172.18.0.99/16 dev net1");
    lab.pod.run("ip link set net1 up");
    lab.report(&json!([{"name": ATTACHMENT, "interface": "net1", "ips": ["172.18.0.99"]}]));
    lab.client.run("ip route add 10.16.0.0/16 via 172.18.0.99");
    lab.node.run(&format!("ip route add 172.18.0.0/16 via {POD_IP}"));
    let passes = || lab.client.attempt("ping -c 1 -W 1 10.16.0.1").0;
    assert!(passes());

    // Whatever keeps the filter away: no configuration yet, or no nft.
    let gateway = lab.start();
    gateway.fault("ConfigMissing");
    assert!(!passes());
    gateway.kill();
    lab.pod.run("sysctl -qw net.ipv4.ip_forward=0 net.ipv4.ip_forward=1");
    let bin = lab.dir().join("bin");
    fs::create_dir_all(&bin).unwrap();
    fs::write(bin.join("nft"), "#!/bin/sh\necho no >&2; exit 1\n").unwrap();
    fs::set_permissions(bin.join("nft"), Permissions::from_mode(0o755)).unwrap();
    let digest = lab.configure(&config(&[("TCP", 80)]));
    let gateway = lab.start_with(&format!("PATH={}:$PATH exec \"$@\"", bin.display()));
    gateway.fault("FilterFailed");
    assert!(!passes());
    gateway.kill();

    let gateway = lab.start();
    gateway.carried_out(&digest);
    assert!(!passes());
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    // A filter that stands is left in charge by the next process.
    gateway.kill();
    let mut stream = lab.client.connect(&format!("{VIP}:80")).unwrap();
    let gateway = lab.start();
    gateway.carried_out(&digest);
    ask(&mut stream).unwrap();
}

#[test]
fn r08_idle_connections_do_not_keep_probes_waiting() {
    let lab = Lab::new();
    let gateway = lab.serving(&config(&[("TCP", 80)]));
    let server: std::net::SocketAddr = format!("{POD_IP}:9410").parse().unwrap();
    // Eight of each of twelve pods, and twenty of one that shares the kubelet's address.
    let mut idle = Vec::new();
    for last in 100..112 {
        let pod: std::net::SocketAddr = format!("10.16.0.{last}:0").parse().unwrap();
        lab.node.run(&format!("ip addr add {}/32 dev lo", pod.ip()));
        for _ in 0..8 {
            idle.push(lab.node.enter(|| {
                let socket =
                    socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                socket.bind(&pod.into()).unwrap();
                socket.connect_timeout(&server.into(), Duration::from_secs(2)).unwrap();
                socket
            }));
        }
    }
    let from_node: Vec<_> = (0..20).map(|_| lab.node.connect(&server.to_string()).unwrap()).collect();
    let start = Instant::now();
    assert_eq!(gateway.get("/readyz").unwrap().0, 200);
    assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
    // They do not last either.
    std::thread::sleep(Duration::from_millis(1500).saturating_sub(start.elapsed()));
    for mut stream in from_node {
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let ended = stream.read(&mut [0; 100]);
        assert!(!ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "{ended:?}");
    }
}

#[test]
fn b10_pod_is_probed_by_either_family() {
    let lab = Lab::new();
    lab.node.run("ip -6 addr add fd00:10:16::1/64 dev eth0 nodad");
    lab.pod.run("ip -6 addr add fd00:10:16::5/64 dev eth0 nodad");
    let gateway = lab.serving(&config(&[("TCP", 80)]));
    let get = |address: &str| {
        let mut stream = lab.node.connect(&format!("[{address}]:9410")).ok()?;
        write!(stream, "GET /readyz HTTP/1.1\r\nHost: gateway\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.starts_with("HTTP/1.1 200 ").then_some(())
    };
    get("fd00:10:16::5").unwrap();
    assert_eq!(gateway.get("/readyz").unwrap().0, 200);
    // One that comes later.
    lab.pod.run("ip -6 addr add fd00:10:16::6/64 dev eth0 nodad");
    let (_, took) = wait("the other address", || get("fd00:10:16::6"));
    assert!(took < Duration::from_secs(2), "{took:?}");
    // On the LAN there is nothing, of either family.
    assert!(lab.client.tcp(&format!("{VIP}:9410")).is_err());
}

#[test]
fn fault_14_a_lan_without_a_router_is_served() {
    let lab = Lab::new();
    lab.router.run("ip link set eth0 down");
    let digest = lab.configure(&probing(&[(VIP, true)]));
    let gateway = lab.start();
    gateway.carried_out(&digest);
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    assert_eq!(gateway.get("/readyz").unwrap().0, 200);
    assert!(gateway.status().unwrap().faults.is_empty());
    lab.router.run("ip link set eth0 up");
    wait("those behind it", || lab.far.tcp(&format!("{VIP}:80")).ok());
}

/// A question to the LAN address's port 53, from whoever it says.
fn claims_to_be(source: std::net::Ipv4Addr) -> Vec<u8> {
    let vip: std::net::Ipv4Addr = VIP.parse().expect("an address");
    // Version and length of the header, no options; 30 bytes, do not fragment;
    // 64 hops, UDP; the kernel fills in the checksum (raw(7)).
    let ip = [0x45, 0, 0, 30, 0, 0, 0x40, 0, 64, 17, 0, 0];
    // From port 5353, 10 bytes, without a checksum (RFC 768).
    let udp = [0x14, 0xe9, 0, 53, 0, 10, 0, 0, b'?', b'\n'];
    [&ip[..], &source.octets(), &vip.octets(), &udp].concat()
}

#[test]
fn no_answer_leaves_for_who_claims_to_be_the_pod_or_all_hosts() {
    let lab = Lab::new();
    let _gateway = lab.serving(&config(&[("UDP", 53)]));
    lab.client.run("ip addr add 172.18.0.77/16 dev eth0");
    let leaves = packets(&lab.lan, libc::ETH_P_ALL as u16);
    let raw = lab.client.enter(|| {
        let protocol = socket2::Protocol::from(libc::IPPROTO_RAW);
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::RAW, Some(protocol)).unwrap()
    });
    let to = std::net::SocketAddr::new(VIP.parse().unwrap(), 0).into();
    let ask = |source: &str| raw.send_to(&claims_to_be(source.parse().unwrap()), &to).unwrap();
    for source in [VIP, POD_IP, CLUSTER_IP, "172.18.255.255", "172.18.0.0", "255.255.255.255", "127.0.0.1"] {
        for _ in 0..5 {
            ask(source);
        }
    }
    // Whom what leaves the pod is for; the neighbour's answer is the last.
    let mac = lab.mac();
    let mut answered = Vec::new();
    let mut buffer = [0; 2048];
    wait("the neighbour's answer", || {
        ask("172.18.0.77");
        while let Ok(length) = recv(leaves.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            let frame = &buffer[..length];
            if arp::format_mac(frame[6..12].try_into().unwrap()) == mac && frame[12..14] == [0x08, 0x00] {
                let to: [u8; 4] = frame[30..34].try_into().unwrap();
                answered.push(std::net::Ipv4Addr::from(to).to_string());
            }
        }
        answered.contains(&"172.18.0.77".to_owned()).then_some(())
    });
    answered.retain(|to| to != "172.18.0.77");
    assert_eq!(answered, Vec::<String>::new());
}

/// As the pod's securityContext has it.
const LEAST: &str = "mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys; \
    exec setpriv --no-new-privs --bounding-set -all,+net_admin,+net_raw \"$@\"";

#[test]
fn two_capabilities_and_a_read_only_proc_sys_are_enough() {
    let lab = Lab::new();
    lab.pod.run("sysctl -qw net.ipv4.ip_forward=0");
    lab.pod.run("sysctl -qw net.ipv4.conf.all.rp_filter=1");
    let digest = lab.configure(&config(&[("TCP", 80), ("UDP", 53)]));
    let gateway = lab.start_with(LEAST);
    gateway.carried_out(&digest);
    assert_eq!(lab.pod.lines("sysctl -n net.ipv4.ip_forward"), ["0"]);
    let reverse_path = "sysctl -n net.ipv4.conf.net1.rp_filter net.ipv4.conf.net1.accept_local";
    assert_eq!(lab.pod.lines(reverse_path), ["2", "0"], "where all is 1");
    for client in [&lab.client, &lab.far] {
        client.tcp(&format!("{VIP}:80")).unwrap();
        exchange(&client.udp(), &format!("{VIP}:53")).unwrap();
    }
    lab.pod.run("nft flush ruleset");
    wait("healing", || lab.client.tcp(&format!("{VIP}:80")).ok());
    assert!(gateway.status().unwrap().faults.is_empty());
    assert!(gateway.metric("lb_svc_gateway_announcements_total") >= 1);
}

#[test]
fn a_missing_capability_is_named() {
    let lab = Lab::new();
    let digest = lab.configure(&config(&[("TCP", 80)]));
    {
        let gateway = lab.start_with("exec setpriv --bounding-set -all,+net_raw \"$@\"");
        let said = gateway.fault("CapabilityMissing");
        assert!(said.contains("NET_ADMIN") && said.contains("securityContext"), "{said}");
        let (code, body) = gateway.get("/readyz").unwrap();
        assert!(code == 503 && body.contains("NET_ADMIN"), "{code} {body}");
    }
    // Without the other it serves, and says what is amiss.
    let gateway = lab.start_with("exec setpriv --bounding-set -all,+net_admin \"$@\"");
    gateway.carried_out(&digest);
    assert!(gateway.fault("CapabilityMissing").contains("NET_RAW"));
    assert_eq!(gateway.get("/readyz").unwrap().0, 200);
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
}

#[test]
fn iptables_is_taken_by_its_variant_and_its_warnings_for_warnings() {
    let lab = Lab::new();
    let script = |name: &str, text: &str| {
        let dir = lab.dir().join("bin");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(dir.join(name), Permissions::from_mode(0o755)).unwrap();
    };
    let path = format!("PATH={}/bin exec \"$@\"", lab.dir().display());
    let config = |port| config_by("iptables", &[("TCP", port)]);
    let digest = lab.configure(&config(80));
    script("nft", "exec /usr/sbin/nft \"$@\"");
    script("iptables-restore", "echo 'iptables-restore v1.8.9 (legacy)'");
    {
        let gateway = lab.start_with(&path);
        let said = gateway.fault("IptablesVariant");
        assert!(said.contains("legacy"), "{said}");
        assert_eq!(gateway.get("/readyz").unwrap().0, 503);
        // Nothing is answered for that is not served.
        assert_eq!(lab.pod.run("ip -4 -o addr show dev net1"), "");
    }
    for name in ["restore", "save"] {
        let real = format!("exec /usr/sbin/iptables-nft-{name} \"$@\"");
        script(
            &format!("iptables-{name}"),
            &format!("echo '# Warning: iptables-legacy tables present' >&2; {real}"),
        );
    }
    let gateway = lab.start_with(&path);
    gateway.carried_out(&digest);
    assert!(gateway.status().unwrap().faults.is_empty());
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    // What fails is named in its own words.
    script(
        "iptables-restore",
        "echo 'Extension DNAT revision 0 not supported, missing kernel module?' >&2; exit 4",
    );
    lab.configure(&config(81));
    let said = gateway.fault("KernelModuleMissing");
    assert!(said.contains("modprobe") && said.contains("Extension DNAT"), "{said}");
    assert_eq!(gateway.status().unwrap().digest, Some(digest));
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
}

#[test]
fn nftables_serves_where_iptables_fails_unless_something_of_it_is_left() {
    let lab = Lab::new();
    let bin = lab.dir().join("bin");
    fs::create_dir_all(&bin).unwrap();
    for (name, text) in [
        ("nft", "exec /usr/sbin/nft \"$@\""),
        ("iptables-nft-restore", "exit 3"),
        ("iptables-nft-save", "exit 3"),
    ] {
        fs::write(bin.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(bin.join(name), Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("PATH={}/bin exec \"$@\"", lab.dir().display());
    let config = |port| config_by("nftables", &[("TCP", port)]);
    let digest = lab.configure(&config(80));
    {
        let gateway = lab.start_with(&path);
        gateway.carried_out(&digest);
        assert!(gateway.status().unwrap().faults.is_empty());
        lab.client.tcp(&format!("{VIP}:80")).unwrap();
        gateway.kill();
    }
    lab.pod.run("iptables -t nat -N LB-SVC-DNAT");
    lab.configure(&config(81));
    let gateway = lab.start_with(&path);
    gateway.fault("NatFailed");
}

#[test]
fn it_waits_for_multus_and_says_so() {
    let lab = Lab::new();
    lab.volume("pod", "network-status", "");
    // Only the report can tell whether an IPAM gave it.
    lab.pod.run("ip addr add 192.0.2.77/24 dev net1");
    let digest = lab.configure(&config(&[("TCP", 80)]));
    let gateway = lab.start();
    let said = gateway.fault("AttachmentPending");
    assert!(said.contains(ATTACHMENT), "{said}");
    assert_eq!(gateway.get("/readyz").unwrap().0, 503);

    let entry = |interface: &str| json!([{"name": ATTACHMENT, "interface": interface}]);
    lab.report(&entry("net7"));
    assert!(gateway.fault("InterfaceMissing").contains("net7"));
    lab.report(&entry("net1"));
    gateway.carried_out(&digest);
    assert_eq!(gateway.get("/readyz").unwrap().0, 200);
    assert!(gateway.status().unwrap().faults.is_empty());
}

#[test]
fn it_does_not_wait_for_multus_where_there_is_no_choice() {
    let lab = Lab::new();
    lab.volume("pod", "network-status", "");
    let digest = lab.configure(&config(&[("TCP", 80)]));
    let gateway = lab.start();
    gateway.carried_out(&digest);
    let state = lab.state();
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    lab.report(&json!([{"name": ATTACHMENT, "interface": "net1"}]));
    gateway.carried_out(&lab.configure(&config(&[("TCP", 80), ("TCP", 81)])));
    gateway.carried_out(&lab.configure(&config(&[("TCP", 80)])));
    assert_eq!(lab.state(), state, "the report changes nothing");
}

#[test]
fn a_bad_configuration_leaves_the_last_good_one_serving() {
    let lab = Lab::new();
    let good = lab.configure(&config(&[("TCP", 80)]));
    let gateway = lab.start();
    gateway.carried_out(&good);
    let state = lab.state();
    for (bad, says) in
        [("{", "does not parse"), (r#"{"version": 99}"#, "version is 99"), ("", "does not parse")]
    {
        lab.volume("config", "config.json", bad);
        let seen = lb_svc_crds::names::digest(bad.as_bytes());
        wait("the bad configuration to be seen", || {
            (gateway.status()?.seen.as_ref() == Some(&seen)).then_some(())
        });
        let said = gateway.fault("ConfigInvalid");
        assert!(said.contains(says), "{said}");
        assert_eq!(gateway.status().unwrap().digest.as_ref(), Some(&good));
        assert_eq!(gateway.get("/readyz").unwrap().0, 200);
        assert_eq!(lab.state(), state);
    }
    let digest = lab.configure(&config(&[("TCP", 8080)]));
    gateway.carried_out(&digest);
    assert!(gateway.status().unwrap().faults.is_empty());
    lab.client.tcp(&format!("{VIP}:8080")).unwrap();
    assert!(lab.client.tcp(&format!("{VIP}:80")).is_err());
}

#[test]
fn several_addresses_come_and_go_one_by_one() {
    let lab = Lab::new();
    let on = |ips: &[&str]| {
        let mut config = config(&[("TCP", 80)]);
        config["addresses"] = ips.iter().map(|ip| address(ip)).collect();
        config["frontends"][0]["addresses"] = json!(ips);
        config
    };
    let gateway = lab.serving(&on(&[VIP, "172.18.0.19", "172.18.0.20"]));
    // The first is the primary one of its prefix: the kernel would take the
    // others with it.
    let digest = lab.configure(&on(&["172.18.0.19", "172.18.0.20"]));
    gateway.carried_out(&digest);
    let addresses = lab.pod.run("ip -4 -o addr show dev net1");
    assert!(!addresses.contains(VIP) && addresses.lines().count() == 2, "{addresses}");
    lab.client.tcp("172.18.0.19:80").unwrap();
    lab.client.tcp("172.18.0.20:80").unwrap();
    assert!(lab.client.tcp(&format!("{VIP}:80")).is_err());
    // All at once for another, without a loss on the way.
    let digest = lab.configure(&on(&[VIP]));
    gateway.carried_out(&digest);
    lab.far.tcp(&format!("{VIP}:80")).unwrap();
    // None at all.
    let mut none = on(&[]);
    none["frontends"] = json!([]);
    let digest = lab.configure(&none);
    gateway.carried_out(&digest);
    assert_eq!(lab.pod.run("ip -4 -o addr show dev net1"), "");
    assert_eq!(lab.pod.run("ip route show table 100"), "");
    assert!(lab.client.tcp(&format!("{VIP}:80")).is_err());
}

#[test]
fn a_smaller_mtu_behind_the_gateway_is_respected() {
    let lab = Lab::new();
    lab.pod.run("ip link set eth0 mtu 1400");
    lab.node.run("ip link set eth0 mtu 1400");
    let _gateway = lab.serving(&config(&[("TCP", 80)]));
    let stream = lab.client.connect(&format!("{VIP}:80")).unwrap();
    let mss = nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::TcpMaxSeg).unwrap();
    assert!(mss <= 1360, "the client would send segments of {mss}");
}

/// The ICMP errors that arrive there for an address, as type, code and path MTU.
struct IcmpErrors(socket2::Socket);

impl IcmpErrors {
    fn at(netns: &lab::Netns) -> Self {
        Self(packets(netns, libc::ETH_P_IP as u16))
    }

    /// Those about packets to the VIP, which also come from it.
    fn about_vip(&self) -> Vec<(u8, u8, u16)> {
        let vip = VIP.parse::<std::net::Ipv4Addr>().expect("an address").octets();
        let mut errors = Vec::new();
        let mut buffer = [0; 2048];
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            let ip = &buffer[14..length];
            // ICMP without IP options; it quotes the packet at 28.
            if ip.len() >= 48 && ip[9] == 1 && ip[12..16] == vip && ip[44..48] == vip {
                errors.push((ip[20], ip[21], u16::from_be_bytes([ip[26], ip[27]])));
            }
        }
        errors
    }
}

/// Clients learn by ICMP from the gateway what it cannot forward to its targets.
fn clients_learn_why_a_packet_is_not_forwarded(lab: &Lab) {
    const FRAGMENTATION_NEEDED: (u8, u8, u16) = (3, 4, 1400);
    const TIME_EXCEEDED: (u8, u8, u16) = (11, 0, 0);
    for client in [&lab.client, &lab.far] {
        let errors = IcmpErrors::at(client);
        let learned = |what: &str, wanted| {
            wait(what, || errors.about_vip().contains(&wanted).then_some(()));
        };
        // Traceroute, before anything else of the flow has passed, and later.
        for warm in [false, true] {
            let socket = client.udp();
            if warm {
                assert!(exchange(&socket, &format!("{VIP}:53")).is_some());
            }
            let hops = if std::ptr::eq(client, &lab.far) { 2 } else { 1 };
            socket.set_ttl(hops).unwrap();
            assert_eq!(exchange(&socket, &format!("{VIP}:53")), None);
            learned("time exceeded", TIME_EXCEEDED);
        }
        // A datagram is sent unfragmented up to the known path MTU, and in
        // fragments beyond it; one that must not be fragmented would be refused
        // to the sender by that path MTU.
        let socket = client.udp();
        socket.connect(format!("{VIP}:53")).unwrap();
        let known = || nix::sys::socket::getsockopt(&socket, nix::sys::socket::sockopt::IpMtu).unwrap();
        assert_eq!(known(), 1500);
        socket.send(&[b'x'; 1450]).unwrap();
        learned("fragmentation needed", FRAGMENTATION_NEEDED);
        let (error, _) = wait("the sender's error", || socket.take_error().unwrap());
        assert_eq!((error.raw_os_error(), known()), (Some(libc::EMSGSIZE), 1400));
        socket.send(&[b'x'; 1450]).unwrap();
        let mut answer = [0; 200];
        socket.recv(&mut answer).expect("an answer to the fragments");
    }
}

#[test]
fn b05_icmp_errors_about_forwarded_packets_reach_the_client() {
    let lab = Lab::new();
    lab.pod.run("ip link set eth0 mtu 1400");
    lab.node.run("ip link set eth0 mtu 1400");
    let gateway = lab.serving(&config(&[("UDP", 53)]));
    clients_learn_why_a_packet_is_not_forwarded(&lab);
    assert!(gateway.status().unwrap().faults.is_empty());
}

#[test]
fn b05_icmp_errors_about_direct_access_reach_the_client() {
    let lab = Lab::new();
    lab.pod.run("ip link set eth0 mtu 1400");
    lab.node.run("ip link set eth0 mtu 1400");
    let _endpoint = lab.endpoint("10.17.0.1", &[5353]);
    let subsets =
        json!([{"addresses": ["10.17.0.1"], "ports": [{"protocol": "UDP", "port": 53, "targetPort": 5353}]}]);
    let _gateway = lab.serving(&config_direct(&[("UDP", 53)], &subsets));
    clients_learn_why_a_packet_is_not_forwarded(&lab);
}

#[test]
fn a_thousand_ports_cost_about_one_restore() {
    let lab = Lab::new();
    let ports: Vec<(&str, u16)> = (1000..2000).map(|port| ("TCP", port)).collect();
    let config = |ports: &[(&str, u16)]| config_by("iptables", ports);
    let gateway = lab.serving(&config(&[("TCP", 80)]));
    let mut bare: Vec<Duration> = Vec::new();
    let mut ours: Vec<Duration> = Vec::new();
    for _ in 0..3 {
        let before = gateway.metric("lb_svc_gateway_converges_total{outcome=\"changed\"}");
        let start = Instant::now();
        let digest = lab.configure(&config(&ports));
        gateway.carried_out(&digest);
        ours.push(start.elapsed());
        assert_eq!(gateway.metric("lb_svc_gateway_converges_total{outcome=\"changed\"}"), before + 1);

        // The same rules once more, by the program alone.
        let saved = lab.pod.run("iptables-save -t nat");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), saved).unwrap();
        let start = Instant::now();
        lab.pod.run(&format!("iptables-restore {}", file.path().display()));
        bare.push(start.elapsed());
        let digest = lab.configure(&config(&[("TCP", 80)]));
        gateway.carried_out(&digest);
    }
    let (ours, bare) = (ours.iter().min().unwrap(), bare.iter().min().unwrap());
    println!("1000 ports from file to status: {ours:?}; one iptables-restore of them: {bare:?}");
    // From the file to the status, not only the rules; and processors shared.
    assert!(*ours < *bare * 2 + Duration::from_millis(150), "{ours:?}, {bare:?}");
}

/// A configuration with addresses of which the LAN is to be asked for some.
fn probing(addresses: &[(&str, bool)]) -> Value {
    let mut config = config(&[("TCP", 80)]);
    let with_probe = |(ip, probe): &(&str, bool)| {
        let mut address = address(ip);
        address["probe"] = json!(probe);
        address
    };
    config["addresses"] = addresses.iter().map(with_probe).collect();
    config["frontends"][0]["addresses"] = addresses.iter().map(|(ip, _)| json!(ip)).collect();
    config
}

/// Hears the frames of a protocol (`linux/if_ether.h`) on all interfaces there.
fn packets(netns: &lab::Netns, protocol: u16) -> socket2::Socket {
    let protocol = socket2::Protocol::from(i32::from(protocol.to_be()));
    let open = || socket2::Socket::new(socket2::Domain::PACKET, socket2::Type::RAW, Some(protocol));
    netns.enter(open).expect("a packet socket")
}

/// What the hosts of the LAN hear by ARP, of one sender.
struct Heard(socket2::Socket);

impl Heard {
    fn on(netns: &lab::Netns) -> Self {
        Self(packets(netns, libc::ETH_P_ARP as u16))
    }

    /// From which address to which, in order.
    fn from(&self, mac: &str) -> Vec<(String, String)> {
        let mut frames = Vec::new();
        let mut buffer = [0; 128];
        while let Ok(length) = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            let frame = Frame::parse(&buffer[..length]).expect("ARP");
            if arp::format_mac(frame.mac) == mac {
                frames.push((frame.sender.to_string(), frame.target.to_string()));
            }
        }
        frames
    }
}

#[test]
fn an_address_that_a_foreign_host_has_is_left_to_it() {
    let lab = Lab::new();
    let foreign: Value = serde_json::from_str(&lab.client.run("ip -j link show eth0")).unwrap();
    let foreign = foreign[0]["address"].as_str().unwrap().to_owned();
    lab.client.run(&format!("ip addr add {VIP}/32 dev eth0"));
    lab.serve_tcp(&lab.client, &format!("{VIP}:80"));
    let known = || lab.router.run(&format!("ip neigh show {VIP}"));
    lab.router.tcp(&format!("{VIP}:80")).unwrap();
    let heard = Heard::on(&lab.client);

    let digest = lab.configure(&probing(&[("172.18.0.19", false), (VIP, true)]));
    let gateway = lab.start();
    let said = gateway.fault("AddressConflict");
    let left = Instant::now();
    assert!(said.contains(VIP) && said.contains(&foreign), "{said}");
    let vip: std::net::IpAddr = VIP.parse().unwrap();
    let status = gateway.status().unwrap();
    assert_eq!(status.digest, None);
    assert_eq!(status.addresses, ["172.18.0.19".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(status.conflicts, [(vip, foreign.clone())].into());
    assert_eq!(gateway.get("/readyz").unwrap().0, 503);
    // The other is served, and the foreign host goes on.
    lab.far.tcp("172.18.0.19:80").unwrap();
    let answer = lab.router.tcp(&format!("{VIP}:80")).unwrap();
    assert_eq!(answer, format!("tcp {VIP}:80 saw 172.18.0.1"));
    assert!(known().contains(&foreign), "{}", known());

    // It leaves. Not before the LAN is asked again is the address anyone's.
    lab.client.run(&format!("ip addr del {VIP}/32 dev eth0"));
    assert!(!lab.pod.run("ip -4 addr show dev net1").contains(VIP));
    lab.router.run("ip neigh flush dev eth0");
    assert!(lab.router.tcp(&format!("{VIP}:80")).is_err());
    assert!(!known().contains("lladdr"), "{}", known());
    let said = heard.from(&lab.mac());
    assert!(said.iter().all(|(sender, _)| sender != VIP), "{said:?}");
    // Longer than one wait's patience, at most.
    while left.elapsed() < Duration::from_secs(6) {
        assert_eq!(gateway.status().unwrap().conflicts.len(), 1);
        std::thread::sleep(Duration::from_millis(100));
    }
    gateway.carried_out(&digest);
    assert!(left.elapsed() < Duration::from_secs(15));
    wait("it to serve", || lab.router.tcp(&format!("{VIP}:80")).ok());
    let status = gateway.status().unwrap();
    assert!(status.faults.is_empty() && status.conflicts.is_empty(), "{status:?}");
    assert!(status.addresses.contains(&vip));
    assert_eq!(gateway.get("/readyz").unwrap().0, 200);
    assert_eq!(gateway.metric("lb_svc_gateway_probes_total{outcome=\"conflict\"}"), 1);
    assert_eq!(gateway.metric("lb_svc_gateway_probes_total{outcome=\"free\"}"), 1);
}

#[test]
fn a_free_address_is_asked_for_once_and_then_announced() {
    let lab = Lab::new();
    let gateway = lab.serving(&probing(&[("172.18.0.19", false)]));
    let heard = Heard::on(&lab.client);
    let mut stream = lab.client.connect("172.18.0.19:80").unwrap();
    ask(&mut stream).unwrap();
    // Without asking, and with.
    let digest = lab.configure(&probing(&[("172.18.0.19", false), ("172.18.0.20", false)]));
    let bare = gateway.carried_out(&digest);
    let digest = lab.configure(&probing(&[("172.18.0.19", false), (VIP, true)]));
    let took = gateway.carried_out(&digest);
    println!("programmed in {bare:?} without asking the LAN, in {took:?} with");
    assert!(took >= Duration::from_millis(100) && took < Duration::from_millis(500), "{took:?}");
    lab.far.tcp(&format!("{VIP}:80")).unwrap();
    ask(&mut stream).unwrap();

    let about_vip = |mac: &str| {
        let mut frames = heard.from(mac);
        frames.retain(|(sender, target)| target == VIP && (sender == VIP || sender == "0.0.0.0"));
        frames.into_iter().map(|(sender, _)| sender).collect::<Vec<_>>()
    };
    let frames = about_vip(&lab.mac());
    // Three, but where the gateway came late to one of them.
    let asked = frames.iter().take_while(|sender| *sender == "0.0.0.0").count();
    assert!((1..=3).contains(&asked) && frames.len() > asked, "{frames:?}");
    assert!(frames[asked..].iter().all(|sender| sender == VIP), "{frames:?}");

    // The next process finds it in service; what is swept away it puts back.
    let good = lab.state();
    gateway.kill();
    let gateway = lab.start();
    gateway.carried_out(&digest);
    ask(&mut stream).unwrap();
    lab.pod.run("ip addr flush dev net1");
    wait("healing", || (lab.state() == good).then_some(()));
    ask(&mut stream).unwrap();
    // The same without the wish to ask is the same.
    let digest = lab.configure(&probing(&[("172.18.0.19", false), (VIP, false)]));
    gateway.carried_out(&digest);
    assert_eq!(lab.state(), good);
    assert_eq!(gateway.metric("lb_svc_gateway_probes_total{outcome=\"free\"}"), 0);
    assert!(!about_vip(&lab.mac()).contains(&"0.0.0.0".to_owned()));
}

#[test]
fn nothing_is_announced_blindly() {
    let lab = Lab::new();
    let digest = lab.configure(&probing(&[(VIP, true)]));
    {
        let gateway = lab.start_with("exec setpriv --bounding-set -all,+net_admin \"$@\"");
        assert!(gateway.fault("CapabilityMissing").contains("NET_RAW"));
        let target = match nat_backend().as_str() {
            "iptables" => format!("-j DNAT --to-destination {CLUSTER_IP}:80"),
            _ => format!("{VIP} . tcp . 80 : {CLUSTER_IP} . 80"),
        };
        wait("the rest", || lab.state().contains(&target).then_some(()));
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(lab.pod.run("ip -4 -o addr show dev net1"), "");
        assert_eq!(gateway.get("/readyz").unwrap().0, 503);
    }
    // Nor into a wire that is not plugged in.
    lab.lan.run("ip link set up0 down");
    let gateway = lab.start();
    let said = gateway.fault("ProbeFailed");
    assert!(said.contains(VIP) && said.contains("carrier"), "{said}");
    lab.lan.run("ip link set up0 up");
    gateway.carried_out(&digest);
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
}

#[test]
fn a_cluster_that_serves_sockets_only_is_noticed() {
    let lab = Lab::new();
    // What sockets send has options, what is sent past them has none: here
    // that tells them apart.
    for line in [
        "nft add table ip sockets",
        "nft add chain ip sockets in { type filter hook prerouting priority -300 ; }",
        &format!("nft add rule ip sockets in ip daddr {CLUSTER_IP} tcp flags syn ip length 40 drop"),
    ] {
        lab.node.run(line);
    }
    let digest = lab.configure(&config(&[("TCP", 80)]));
    let gateway = lab.start();
    let said = gateway.fault("ClusterIpSocketsOnly");
    assert!(said.contains(CLUSTER_IP), "{said}");
    assert_eq!(gateway.get("/readyz").unwrap().0, 503);
    assert_eq!(gateway.status().unwrap().digest, None);

    lab.node.run("nft delete table ip sockets");
    gateway.carried_out(&digest);
    assert_eq!(gateway.get("/readyz").unwrap().0, 200);
    lab.client.tcp(&format!("{VIP}:80")).unwrap();

    // While nobody answers at all, nothing is said.
    let digest = lab.configure(&config_to("10.109.201.195", &[("TCP", 80)]));
    gateway.carried_out(&digest);
    wait("one look to end", || {
        lab.pod.run("ss -tan state syn-sent").contains("10.109.201.195").then_some(())
    });
    wait("the other", || (!lab.pod.run("ss -tan state syn-sent").contains("10.109.201.195")).then_some(()));
    assert!(gateway.status().unwrap().faults.is_empty());
}

#[test]
fn the_nat_changes_hands_under_traffic() {
    let lab = Lab::new();
    let by = |backend| config_by(backend, &[("TCP", 80), ("UDP", 53)]);
    let gateway = lab.serving(&by("iptables"));
    let mut stream = lab.client.connect(&format!("{VIP}:80")).unwrap();
    let socket = lab.far.udp();
    let left = |lab: &Lab| {
        let iptables = lab.pod.run("iptables-save").contains("LB-SVC-");
        (iptables, lab.pod.attempt("nft list table ip lb-svc").0)
    };
    for (backend, expected) in [("nftables", (false, true)), ("iptables", (true, false))] {
        ask(&mut stream).unwrap();
        exchange(&socket, &format!("{VIP}:53")).unwrap();
        let digest = lab.configure(&by(backend));
        gateway.carried_out(&digest);
        assert_eq!(left(&lab), expected, "{backend}");
        ask(&mut stream).unwrap();
        exchange(&socket, &format!("{VIP}:53")).unwrap();
        lab.client.tcp(&format!("{VIP}:80")).unwrap();
    }
    assert_eq!(gateway.metric("lb_svc_gateway_conntrack_cut_total"), 0);
    // Also while nobody is there.
    gateway.kill();
    let gateway = lab.serving(&by("nftables"));
    assert_eq!(left(&lab), (false, true));
    ask(&mut stream).unwrap();
    drop(gateway);
}

#[test]
fn clients_out_of_range_are_refused_and_cut() {
    let lab = Lab::new();
    let everybody = config(&[("TCP", 80), ("TCP", 81), ("UDP", 53)]);
    let limited = |networks: &[&str]| {
        let mut config = everybody.clone();
        (config["version"], config["frontends"][0]["clients"]) = (json!(3), json!(networks));
        config
    };
    let gateway = lab.serving(&everybody);
    let (tcp, udp) = (format!("{VIP}:80"), format!("{VIP}:53"));
    let mut streams = [&lab.client, &lab.far].map(|host| host.connect(&tcp).unwrap());
    let sockets = [&lab.client, &lab.far].map(lab::Netns::udp);
    for (stream, socket) in streams.iter_mut().zip(&sockets) {
        ask(stream).unwrap();
        exchange(socket, &udp).unwrap();
    }

    let digest = lab.configure(&limited(&["192.168.99.0/24", "198.51.100.0/24"]));
    gateway.carried_out(&digest);
    let [near, far] = &mut streams;
    assert_eq!(lab.client.tcp(&tcp).unwrap_err().kind(), ErrorKind::TimedOut);
    ask(near).unwrap_err();
    assert_eq!(exchange(&sockets[0], &udp), None);
    ask(far).unwrap();
    lab.far.tcp(&tcp).unwrap();
    exchange(&sockets[1], &udp).unwrap();
    let cut = gateway.metric("lb_svc_gateway_conntrack_cut_total");
    assert!(cut >= 2, "{cut}");
    let dropped = |gateway: &lab::Gateway, protocol: &str, port: u16| {
        let labels = format!("service=\"default/test-service\",address=\"{VIP}\",protocol=\"{protocol}\"");
        gateway.metric(&format!("lb_svc_gateway_dropped_packets_total{{{labels},port=\"{port}\"}}"))
    };
    assert!(dropped(&gateway, "tcp", 80) >= 2, "a connection and a segment");
    assert_eq!(dropped(&gateway, "udp", 53), 1);
    assert_eq!(dropped(&gateway, "tcp", 81), 0);
    // Another limit leaves it at what it was.
    let digest = lab.configure(&limited(&["192.168.99.0/24"]));
    gateway.carried_out(&digest);
    assert_eq!(dropped(&gateway, "udp", 53), 1);

    // Whoever takes the limit away, it is back.
    for damage in ["delete table ip lb-svc-ranges", "flush chain ip lb-svc-ranges arriving"] {
        let whole = lab.pod.run("nft -s list table ip lb-svc-ranges");
        lab.pod.run(&format!("nft {damage}"));
        wait(damage, || {
            let (there, now) = lab.pod.attempt("nft -s list table ip lb-svc-ranges");
            (there && now == whole).then_some(())
        });
        assert_eq!(lab.client.tcp(&tcp).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    // A process that starts finds it, and takes it over.
    gateway.kill();
    lab.client.tcp(&tcp).unwrap_err();
    let gateway = lab.serving(&limited(&["172.18.0.0/16"]));
    lab.client.tcp(&tcp).unwrap();
    lab.far.tcp(&tcp).unwrap_err();
    let digest = lab.configure(&limited(&[]));
    gateway.carried_out(&digest);
    lab.client.tcp(&tcp).unwrap_err();

    let digest = lab.configure(&everybody);
    gateway.carried_out(&digest);
    for host in [&lab.client, &lab.far] {
        host.tcp(&tcp).unwrap();
    }
    let (there, _) = lab.pod.attempt("nft list table ip lb-svc-ranges");
    assert!(!there, "no limit, no table");
}

#[test]
fn what_passes_is_counted_by_port() {
    let lab = Lab::new();
    let gateway = lab.serving(&config(&[("TCP", 80), ("UDP", 53)]));
    let labels = |protocol: &str, port: u16| {
        format!("service=\"default/test-service\",address=\"{VIP}\",protocol=\"{protocol}\",port=\"{port}\"")
    };
    let connections = |gateway: &lab::Gateway, protocol, port| {
        gateway.metric(&format!("lb_svc_gateway_connections_total{{{}}}", labels(protocol, port)))
    };
    let flow = |gateway: &lab::Gateway, what: &str, protocol, port, direction: &str| {
        let labels = labels(protocol, port);
        gateway.metric(&format!("lb_svc_gateway_{what}_total{{{labels},direction=\"{direction}\"}}"))
    };
    wait("the counters", || lab.pod.attempt("nft list table ip lb-svc-traffic").0.then_some(()));
    for _ in 0..5 {
        lab.client.tcp(&format!("{VIP}:80")).unwrap();
    }
    let socket = lab.far.udp();
    for _ in 0..3 {
        exchange(&socket, &format!("{VIP}:53")).unwrap();
    }
    assert_eq!(connections(&gateway, "tcp", 80), 5);
    assert_eq!(connections(&gateway, "udp", 53), 1, "one flow");
    for direction in ["in", "out"] {
        assert_eq!(flow(&gateway, "packets", "udp", 53, direction), 3, "{direction}");
        assert!(flow(&gateway, "packets", "tcp", 80, direction) >= 5 * 3, "{direction}");
    }
    // IP and UDP headers, and "hello".
    assert_eq!(flow(&gateway, "bytes", "udp", 53, "in"), 3 * (20 + 8 + 5));

    // What changes beside it, and who starts anew, does not begin at nothing.
    let digest = lab.configure(&config(&[("TCP", 80), ("TCP", 81)]));
    gateway.carried_out(&digest);
    lab.client.tcp(&format!("{VIP}:81")).unwrap();
    wait("port 81 to be counted", || {
        lab.client.tcp(&format!("{VIP}:81")).unwrap();
        (connections(&gateway, "tcp", 81) > 0).then_some(())
    });
    assert_eq!(connections(&gateway, "tcp", 80), 5);
    let stale = || lab.pod.run("nft list counters table ip lb-svc-traffic").contains("udp-53");
    wait("the port that went to go", || (!stale()).then_some(()));
    gateway.kill();
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    let gateway = lab.serving(&config(&[("TCP", 80)]));
    // A process that has just become ready may not have read the counters yet.
    wait("six connections", || (connections(&gateway, "tcp", 80) == 6).then_some(()));

    // Whoever takes the counters away, they are back.
    lab.pod.run("nft delete table ip lb-svc-traffic");
    wait("it to be counted again", || {
        lab.client.tcp(&format!("{VIP}:80")).unwrap();
        (connections(&gateway, "tcp", 80) > 0).then_some(())
    });
}

/// For how many seconds more the pod's kernel remembers each connection of TCP
/// to port 80, and its state.
fn remembered(lab: &Lab) -> Vec<(u32, String)> {
    let listed = lab.pod.run(&format!("conntrack -L -p tcp --orig-dst {VIP} --orig-port-dst 80"));
    let entry = |line: &str| {
        let mut words = line.split_whitespace().skip(2);
        Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
    };
    listed.lines().filter_map(entry).collect()
}

#[test]
fn connections_are_forgotten_in_time() {
    const TABLE: &str = "nft -s list table ip lb-svc-timeouts";
    let lab = Lab::new();
    let to = format!("{VIP}:80");
    let gateway = lab.serving(&config(&[("TCP", 80), ("UDP", 53)]));
    let there = || {
        wait("the timeouts", || {
            let (there, table) = lab.pod.attempt(TABLE);
            there.then_some(table)
        })
        .0
    };
    let table = there();
    lab.client.tcp(&to).unwrap();
    let mut stream = lab.client.connect(&to).unwrap();
    ask(&mut stream).unwrap();
    let of = |state: &str| {
        let left = || remembered(&lab).into_iter().find(|(_, seen)| seen == state);
        wait(state, left).0.0
    };
    let (ended, open) = (of("TIME_WAIT"), of("ESTABLISHED"));
    assert!((55..=62).contains(&ended), "{ended} s after its end");
    assert!((86_000..=86_400).contains(&open), "{open} s without a word");
    // Reset, where there is nobody to remember it.
    let reset = lab.client.connect(&to).unwrap();
    socket2::SockRef::from(&reset).set_linger(Some(Duration::ZERO)).unwrap();
    drop(reset);
    assert!(of("CLOSE") <= 2);

    // Another process finds it so, and whoever takes it away, it is back; the
    // connection that there was has none of that.
    gateway.kill();
    let gateway = lab.serving(&config(&[("TCP", 80), ("UDP", 53)]));
    for damage in ["delete table ip lb-svc-timeouts", "flush chain ip lb-svc-timeouts opening"] {
        assert_eq!(there(), table);
        lab.pod.run(&format!("nft {damage}"));
        wait(damage, || (lab.pod.attempt(TABLE) == (true, table.clone())).then_some(()));
        ask(&mut stream).unwrap();
    }
    assert!(gateway.status().unwrap().faults.is_empty());

    gateway.carried_out(&lab.configure(&config(&[("UDP", 53)])));
    wait("the timeouts to go", || (!lab.pod.attempt(TABLE).0).then_some(()));
}

#[test]
fn b09_half_closed_connection_is_remembered_for_an_hour() {
    let lab = Lab::new();
    let _gateway = lab.serving(&config(&[("TCP", 443)]));
    wait("the timeouts", || lab.pod.attempt("nft list table ip lb-svc-timeouts").0.then_some(()));
    let listener = lab.node.enter(|| std::net::TcpListener::bind(format!("{CLUSTER_IP}:443"))).unwrap();
    // Whichever end closes first, the other may take its time.
    for client_first in [true, false] {
        let client = lab.client.connect(&format!("{VIP}:443")).unwrap();
        let (server, _) = listener.accept().unwrap();
        let first = if client_first { &client } else { &server };
        first.shutdown(std::net::Shutdown::Write).unwrap();
        let list = format!("conntrack -L -p tcp --orig-port-src {}", client.local_addr().unwrap().port());
        let (left, _) = wait("the half-closed connection", || {
            let listed = lab.pod.run(&list);
            let mut words = listed.split_whitespace().skip(2);
            let left: u32 = words.next()?.parse().ok()?;
            (words.next() == Some("CLOSE_WAIT")).then_some(left)
        });
        assert!((3_500..=3_600).contains(&left), "{left} s");
    }
}

#[test]
fn a_kernel_without_timeouts_of_conntrack_serves() {
    let lab = Lab::new();
    let bin = lab.dir().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let nft = lab.pod.run("which nft");
    let refuses = format!(
        "#!/bin/sh\ninput=$(cat)\ncase $input in *'ct timeout'*) echo 'Error: No such file or directory' >&2; exit 1;; esac\necho \"$input\" | {} \"$@\"\n",
        nft.trim()
    );
    fs::write(bin.join("nft"), refuses).unwrap();
    fs::set_permissions(bin.join("nft"), Permissions::from_mode(0o755)).unwrap();
    let digest = lab.configure(&config(&[("TCP", 80)]));
    let gateway = lab.start_with(&format!("PATH={}:$PATH exec \"$@\"", bin.display()));
    gateway.carried_out(&digest);
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    wait("the rest", || lab.pod.attempt("nft list table ip lb-svc-traffic").0.then_some(()));
    assert!(gateway.status().unwrap().faults.is_empty());
    assert_eq!(gateway.get("/readyz").unwrap().0, 200);
    let log = fs::read_to_string(lab.dir().join("log")).unwrap();
    assert!(log.contains("connections keep the kernel's own timeouts"), "{log}");
}

#[test]
fn how_near_a_port_is_to_running_out_is_shown() {
    let lab = Lab::new();
    let gateway = lab.serving(&config(&[("TCP", 80), ("TCP", 81), ("UDP", 53)]));
    let shown = |name: &str, protocol: &str, port: u16| {
        let labels = format!("service=\"default/test-service\",address=\"{VIP}\",protocol=\"{protocol}\"");
        gateway.metric(&format!("lb_svc_gateway_{name}{{{labels},port=\"{port}\"}}"))
    };
    let streams: Vec<_> = (0..3)
        .map(|_| {
            let mut stream = lab.client.connect(&format!("{VIP}:80")).unwrap();
            ask(&mut stream).unwrap();
            stream
        })
        .collect();
    lab.far.tcp(&format!("{VIP}:80")).unwrap();
    let socket = lab.client.udp();
    exchange(&socket, &format!("{VIP}:53")).unwrap();
    // Those that are open, and one that ended.
    for (protocol, port, expected) in [("tcp", 80, 4), ("tcp", 81, 0), ("udp", 53, 1)] {
        assert_eq!(shown("source_ports", protocol, port), expected, "{protocol} {port}");
        assert_eq!(shown("source_ports_limit", protocol, port), 64_512);
    }
    let limit: u64 = lab.pod.run("sysctl -n net.netfilter.nf_conntrack_max").trim().parse().unwrap();
    assert_eq!(gateway.metric("lb_svc_gateway_conntrack_limit"), limit);
    let entries = gateway.metric("lb_svc_gateway_conntrack_entries");
    assert!((5..100).contains(&entries), "{entries}");
    drop(streams);
}
