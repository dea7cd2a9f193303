//! Several pods of one gateway, on one LAN: which of them answers, and when.

// All of this is a test, though not by its attributes.
#![allow(clippy::unwrap_used)]

mod lab;

use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use lab::election::{is, role, standby, two};
use lab::{Gateway, Lab, Netns, Site, VIP, ask, config, exchange, wait};
use lb_svc_crds::gateway::Role;
use lb_svc_gateway::l2::arp;
use lb_svc_gateway::l2::socket::FrameSender;
use serde_json::{Value, json};

/// The promise: from the active pod's end until the client is served again.
const TAKEN_OVER: Duration = Duration::from_millis(800);

fn vip() -> Ipv4Addr {
    VIP.parse().unwrap()
}

fn has_address(site: &Site) -> bool {
    site.pod.run("ip -4 addr show dev net1").contains(VIP)
}

/// How long the client goes unanswered until one of these is active and it is
/// answered: the longest time from one answer to the next.
fn outage(lab: &Lab, until: &[&Gateway]) -> Duration {
    let start = Instant::now();
    let (mut answered, mut longest) = (start, Duration::ZERO);
    loop {
        // A flow of its own each time.
        let socket = lab.client.udp();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let active = until.iter().any(|gateway| role(gateway) == Some(Role::Active));
        if exchange(&socket, &format!("{VIP}:53")).is_some() {
            longest = longest.max(answered.elapsed());
            answered = Instant::now();
            if active {
                return longest;
            }
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{longest:?}, and then not for long");
    }
}

/// What a host of the LAN hears.
struct Capture(std::os::fd::OwnedFd);

impl Capture {
    fn on(lab: &Lab) -> Self {
        Self::at(&lab.client)
    }

    fn at(host: &Netns) -> Self {
        use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, socket};
        let fd = host.enter(|| {
            let fd = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_NONBLOCK,
                Some(SockProtocol::EthAll),
            )
            .unwrap();
            let link = nix::ifaddrs::getifaddrs()
                .unwrap()
                .filter(|entry| entry.interface_name == "eth0")
                .find_map(|entry| entry.address?.as_link_addr().copied())
                .unwrap();
            bind(fd.as_raw_fd(), &link).unwrap();
            fd
        });
        Self(fd)
    }

    fn frames(&self) -> impl Iterator<Item = Vec<u8>> {
        std::iter::from_fn(|| {
            let mut frame = vec![0; 2048];
            let length = nix::unistd::read(&self.0, &mut frame).ok()?;
            frame.truncate(length);
            Some(frame)
        })
    }

    /// Every ARP frame that speaks for the address, and every frame from it: the
    /// sender's hardware address, and whether it is an announcement.
    fn heard(&self) -> Vec<(String, bool)> {
        let vip = vip();
        let mut heard = Vec::new();
        for frame in self.frames() {
            let from: [u8; 6] = frame[6..12].try_into().unwrap();
            if let Some(said) = arp::Frame::parse(&frame).filter(|said| said.sender == vip) {
                heard.push((arp::format_mac(from), said.target == vip));
            } else if frame[12..14] == [8, 0] && frame[26..30] == vip.octets() {
                heard.push((arp::format_mac(from), false));
            }
        }
        heard
    }

    /// After the new owner's first announcement nothing is heard of the old.
    fn changed_hands_cleanly(&self, old: &str, new: &str) {
        let mut heard = Vec::new();
        // A client may find the new owner by itself, a moment before.
        let (announced, _) = wait("an announcement", || {
            heard.extend(self.heard());
            heard.iter().position(|(mac, announcement)| mac == new && *announcement)
        });
        let late = heard[announced..].iter().filter(|(mac, _)| mac == old).count();
        assert_eq!(late, 0, "{old} spoke on: {heard:?}");
    }
}

#[test]
fn one_of_two_answers() {
    let lab = Lab::new();
    let (first, other) = two(&lab);
    let capture = Capture::on(&lab);
    let second = standby(&first, &other);
    assert!(has_address(&lab) && !has_address(&other));
    lab.client.run("ip neigh flush dev eth0");
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    assert!(capture.heard().iter().all(|(mac, _)| *mac == lab.mac()));
    let status = second.status().unwrap();
    assert!(status.addresses.is_empty() && status.faults.is_empty(), "{status:?}");
    let election = status.election.unwrap();
    assert!(election.active.is_some() && election.peers.len() == 1, "{election:?}");
    assert_eq!((first.metric("lb_svc_gateway_active"), second.metric("lb_svc_gateway_active")), (1, 0));
    // All but the addresses is there long before.
    assert_eq!(lab.nat(), other.nat());
    let rules = |site: &Site| site.pod.run("ip rule");
    assert_eq!(rules(&lab), rules(&other));
}

#[test]
fn a_killed_process_is_replaced_and_comes_back_as_standby() {
    let lab = Lab::new();
    let (first, other) = two(&lab);
    let second = standby(&first, &other);
    let capture = Capture::on(&lab);
    first.kill();
    let took = outage(&lab, &[&second]);
    println!("served again after {took:?}");
    assert!(took < TAKEN_OVER, "{took:?}");
    is(&second, Role::Active);
    assert!(second.status().unwrap().election.unwrap().why.contains("fell silent"));
    // The dead one's kernel has the address still, and is silent.
    assert!(has_address(&lab));
    lab.client.run("ip neigh flush dev eth0");
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    let first = lab.start();
    is(&first, Role::Standby);
    wait("the address to be gone", || (!has_address(&lab)).then_some(()));
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    capture.changed_hands_cleanly(&lab.mac(), &other.mac());
    is(&second, Role::Active);
}

#[test]
fn an_established_connection_is_reset_and_not_left_hanging() {
    let lab = Lab::new();
    let (first, other) = two(&lab);
    let second = standby(&first, &other);
    let mut stream = lab.client.connect(&format!("{VIP}:80")).unwrap();
    ask(&mut stream).unwrap();
    first.kill();
    outage(&lab, &[&second]);
    let start = Instant::now();
    let error = ask(&mut stream).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_stopped_process_loses_the_address_and_does_not_take_it_back() {
    let lab = Lab::new();
    let (first, other) = two(&lab);
    let second = standby(&first, &other);
    let capture = Capture::on(&lab);
    first.pause(true);
    let took = outage(&lab, &[&second]);
    println!("served again after {took:?}");
    assert!(took < TAKEN_OVER, "{took:?}");
    is(&second, Role::Active);
    first.pause(false);
    is(&first, Role::Standby);
    let why = first.status().unwrap().election.unwrap().why;
    assert!(why.contains("lapsed"), "{why}");
    let (_, steady) =
        wait("five answers", || (0..5).all(|_| lab.client.tcp(&format!("{VIP}:80")).is_ok()).then_some(()));
    assert!(steady < Duration::from_secs(1), "{steady:?}");
    capture.changed_hands_cleanly(&lab.mac(), &other.mac());
    assert_eq!(second.status().unwrap().election.unwrap().splits, 0);
}

#[test]
fn who_came_late_is_waited_for() {
    let lab = Lab::new();
    lab.key(7);
    let mut slow = config(&[("UDP", 53)]);
    // Between a lease and three times that there is to be time for a test.
    slow["election"]["intervalMs"] = json!(200);
    let gateway = lab.serving(&slow);
    is(&gateway, Role::Active);
    let site = lab.another(1);
    site.key(7);
    let other = site.serving(&slow);
    is(&other, Role::Standby);
    wait("the standby to be heard", || (gateway.status()?.election?.peers.len() == 1).then_some(()));
    let changes = || gateway.metric("lb_svc_gateway_role_changes_total");
    let (before, socket) = (changes(), lab.client.udp());
    let late = || gateway.metric("lb_svc_gateway_late_total");
    wait("it to be late", || {
        // Never so long that it loses the lease.
        gateway.pause(true);
        std::thread::sleep(Duration::from_millis(380));
        gateway.pause(false);
        (late() > 0).then_some(())
    });
    let known = || lab.pod.run("nft list set netdev lb-svc lease").contains("expires 1s");
    wait("the longer lease", || known().then_some(()));
    // Longer than the lease would be: the kernel goes on answering.
    let before_that = late();
    gateway.pause(true);
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1200) {
        assert!(exchange(&socket, &format!("{VIP}:53")).is_some(), "{:?}", start.elapsed());
    }
    gateway.pause(false);
    wait("it to speak again", || (late() > before_that).then_some(()));
    assert_eq!((changes(), role(&other)), (before, Some(Role::Standby)));

    // And who does not come back is replaced.
    gateway.kill();
    is(&other, Role::Active);
}

#[test]
fn who_is_told_to_end_hands_over() {
    let lab = Lab::new();
    let (first, other) = two(&lab);
    let second = standby(&first, &other);
    wait("the standby to be known", || (first.status()?.election?.peers.len() == 1).then_some(()));
    let capture = Capture::on(&lab);
    let (well, _) = first.terminate();
    assert!(well);
    let took = outage(&lab, &[&second]);
    println!("served again after {took:?}");
    assert!(took < Duration::from_millis(200), "{took:?}");
    is(&second, Role::Active);
    assert!(second.status().unwrap().election.unwrap().why.contains("handed over"));
    lab.client.run("ip neigh flush dev eth0");
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    capture.changed_hands_cleanly(&lab.mac(), &other.mac());
}

#[test]
fn who_loses_a_link_gives_the_address_away() {
    for (what, netns, link) in [("its LAN", 'l', "p0"), ("its pod network", 'n', "eth0")] {
        let lab = Lab::new();
        let (first, other) = two(&lab);
        let second = standby(&first, &other);
        let at = if netns == 'l' { &lab.lan } else { &lab.node };
        at.run(&format!("ip link set {link} down"));
        let took = outage(&lab, &[&second]);
        println!("without {what}: served again after {took:?}");
        assert!(took < TAKEN_OVER, "{what}: {took:?}");
        is(&second, Role::Active);
        at.run(&format!("ip link set {link} up"));
        // It comes back, and nobody notices.
        wait("the peer to be heard", || {
            let election = second.status()?.election?;
            (election.role == Role::Active && election.peers.len() == 1).then_some(())
        });
        let (_, steady) = wait("five answers", || {
            (0..5).all(|_| lab.client.tcp(&format!("{VIP}:80")).is_ok()).then_some(())
        });
        assert!(steady < Duration::from_secs(1), "{what}: {steady:?}");
        is(&second, Role::Active);
        if netns == 'l' {
            is(&first, Role::Standby);
        }
    }
}

#[test]
fn two_that_were_apart_agree_on_the_later_one() {
    let lab = Lab::new();
    // Without a router a pod cannot know that it is cut off.
    lab.lan.run("ip link set r0 down");
    let (first, other) = two(&lab);
    let second = standby(&first, &other);
    // Deaf and dumb, behind a link that stays up.
    lab.lan.run("bridge link set dev p0 state 0");
    let took = outage(&lab, &[&second]);
    println!("served again after {took:?}");
    assert!(took < TAKEN_OVER, "{took:?}");
    is(&second, Role::Active);
    is(&first, Role::Active);
    let capture = Capture::on(&lab);
    lab.lan.run("bridge link set dev p0 state 3");
    is(&first, Role::Standby);
    is(&second, Role::Active);
    let splits = |gateway: &Gateway| gateway.status().unwrap().election.unwrap().splits;
    assert_eq!((splits(&first), splits(&second)), (1, 1));
    lab.client.run("ip neigh flush dev eth0");
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    // The one that stays says so to the neighbours, who may have heard both.
    wait("an announcement", || {
        capture.heard().iter().any(|(mac, announcement)| *announcement && *mac == other.mac()).then_some(())
    });
}

/// It makes sure of the router, again and again; with fifty such pods that would
/// be a storm on the LAN.
#[test]
fn who_misses_the_other_pod_asks_the_router_alone() {
    let lab = Lab::new();
    let (first, other) = two(&lab);
    let second = standby(&first, &other);
    let (client, router) = (Capture::on(&lab), Capture::at(&lab.router));
    first.kill();
    let asks = |frame: &Vec<u8>| {
        let said = arp::Frame::parse(frame);
        said.is_some_and(|said| {
            said.request && arp::format_mac(said.mac) == other.mac() && said.target != vip()
        })
    };
    let mut asked = 0;
    wait("it to ask", || {
        asked += router.frames().filter(asks).count();
        (asked >= 5).then_some(())
    });
    let heard = client.frames().filter(asks).count();
    assert!(heard <= 1, "it asked everyone {heard} times");
    is(&second, Role::Active);
}

/// The pods of a node may be on one bridge: what is for all wakes each of them.
#[test]
fn the_pod_networks_next_hop_alone_is_asked_once_it_answered() {
    let lab = Lab::new();
    let capture = Capture::at(&lab.node);
    let (_first, _other) = two(&lab);
    let (mut asked, mut everyone) = (0, 0);
    wait("it to be asked", || {
        for frame in capture.frames() {
            let asks = arp::Frame::parse(&frame).is_some_and(|said| said.request);
            asked += usize::from(asks);
            everyone += usize::from(asks && frame[..6] == [0xff; 6]);
        }
        (asked >= 10).then_some(())
    });
    // The kernel asks for itself as well.
    assert!(everyone <= 2, "everyone was asked {everyone} of {asked} times");
}

#[test]
fn who_is_cut_off_lets_go_and_is_not_heard_when_it_is_back() {
    let lab = Lab::new();
    let (first, other) = two(&lab);
    let second = standby(&first, &other);
    let capture = Capture::on(&lab);
    lab.lan.run("bridge link set dev p0 state 0");
    let took = outage(&lab, &[&second]);
    println!("served again after {took:?}");
    assert!(took < TAKEN_OVER, "{took:?}");
    let (why, _) = wait("the first to let go", || {
        let election = first.status()?.election?;
        (election.role == Role::Standby).then_some(election.why)
    });
    assert_eq!(why, "isolated: neither another pod nor the router is heard");
    capture.changed_hands_cleanly(&lab.mac(), &other.mac());
    lab.client.run("ip neigh flush dev eth0");
    lab.lan.run("bridge link set dev p0 state 3");
    wait("them to hear each other", || {
        let peers = |gateway: &Gateway| Some(gateway.status()?.election?.peers.len());
        (peers(&first)? == 1 && peers(&second)? == 1).then_some(())
    });
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    is(&second, Role::Active);
    is(&first, Role::Standby);
    let heard = capture.heard();
    assert!(heard.iter().all(|(mac, _)| *mac != lab.mac()), "{heard:?}");
    assert_eq!(second.status().unwrap().election.unwrap().splits, 0);
}

#[test]
fn a_client_is_served_when_the_other_pod_and_the_router_are_gone() {
    let lab = Lab::new();
    let (first, other) = two(&lab);
    let second = standby(&first, &other);
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    lab.lan.run("ip link set r0 down");
    second.kill();
    // It cannot tell that from being cut off, until the client says something.
    wait("the first to let go", || first.status()?.election?.why.starts_with("isolated").then_some(()));
    let took = outage(&lab, &[&first]);
    println!("served again after {took:?}");
    assert!(took < TAKEN_OVER, "{took:?}");
}

#[test]
fn who_hears_the_others_does_not_ask_for_their_address() {
    let lab = Lab::new();
    let (first, other) = two(&lab);
    let capture = Capture::on(&lab);
    standby(&first, &other);
    let asked = |frame: &arp::Frame| frame.sender.is_unspecified() && frame.target == vip();
    // To a pod that asks whether the address is free, that is a conflict.
    assert_eq!(capture.frames().filter_map(|frame| arp::Frame::parse(&frame)).find(asked), None);
}

#[test]
fn who_has_another_key_waits_at_the_door() {
    let lab = Lab::new();
    let (first, other) = two(&lab);
    other.key(8);
    let second = other.serving(&config(&[("TCP", 80), ("UDP", 53)]));
    // It sees that somebody answers for the address.
    wait("it to be ready", || (second.get("/readyz")?.0 == 200).then_some(()));
    wait("frames it does not believe", || {
        (second.metric("lb_svc_gateway_election_rejected_total{reason=\"bad_tag\"}") > 20).then_some(())
    });
    assert_eq!(role(&second), Some(Role::Standby));
    assert!(!has_address(&other));
    is(&first, Role::Active);
    first.kill();
    let took = outage(&lab, &[&second]);
    assert!(took < Duration::from_secs(2), "{took:?}");
    is(&second, Role::Active);
}

#[test]
fn a_pod_without_a_key_is_waited_for() {
    let lab = Lab::new();
    let mut known = config(&[("TCP", 80), ("UDP", 53)]);
    let old = lab.serving(&known);
    assert!(old.status().unwrap().election.is_none());
    let other = lab.another(1);
    other.key(7);
    known["election"]["predecessors"] = json!([lab.mac()]);
    let new = other.serving(&known);
    wait("it to be ready", || (new.get("/readyz")?.0 == 200).then_some(()));
    // Longer than for a stranger.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(12) {
        assert_eq!(role(&new), Some(Role::Standby));
        std::thread::sleep(Duration::from_millis(200));
    }
    lab.client.tcp(&format!("{VIP}:80")).unwrap();
    // The pod ends, and its network namespace with it.
    old.kill();
    lab.pod.run("ip link set net1 down");
    assert!(outage(&lab, &[&new]) < Duration::from_secs(1));
}

#[test]
fn b17_a_stranger_keeps_an_address_that_was_in_service_for_ten_seconds_at_most() {
    let lab = Lab::new();
    // As a node does that kube-proxy gave the address to, with IPVS: nothing of ours.
    lab.router.run(&format!("ip address add {VIP}/32 dev lo"));
    lab.key(7);
    let start = Instant::now();
    let mut known = config(&[("TCP", 80), ("UDP", 53)]);
    known["election"]["predecessors"] = json!([]);
    let gateway = lab.serving(&known);
    wait("it to be ready", || (gateway.get("/readyz")?.0 == 200).then_some(()));
    assert_eq!(role(&gateway), Some(Role::Standby));
    while role(&gateway) != Some(Role::Active) {
        assert!(start.elapsed() < Duration::from_secs(16), "it waits on");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(start.elapsed() > Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn the_lease_outlives_what_others_do_to_its_table() {
    let lab = Lab::new();
    let (first, other) = two(&lab);
    let second = standby(&first, &other);
    for damage in ["nft flush table netdev lb-svc", "nft delete table netdev lb-svc"] {
        for site in [&*lab, &other] {
            site.pod.run(damage);
            wait("healing", || {
                site.pod.attempt("nft list chain netdev lb-svc own").1.contains("0x3").then_some(())
            });
        }
        assert!(outage(&lab, &[&first, &second]) < TAKEN_OVER, "{damage}");
    }
}

#[test]
fn an_edited_configuration_moves_nothing() {
    let lab = Lab::new();
    let (first, other) = two(&lab);
    let _second = standby(&first, &other);
    let before = first.status().unwrap().election.unwrap();
    for site in [&*lab, &other] {
        site.configure(&config(&[("TCP", 80), ("TCP", 81), ("UDP", 53)]));
    }
    wait("the new port", || lab.client.tcp(&format!("{VIP}:81")).ok());
    let after = first.status().unwrap().election.unwrap();
    assert_eq!((after.term, after.since_ms), (before.term, before.since_ms));
}

/// Sends this frame to the LAN for half a second, as fast as it can.
fn flood(lab: &Lab, frame: &[u8]) {
    let until = Instant::now() + Duration::from_millis(500);
    lab.client.enter(|| {
        let mut sender = FrameSender::default();
        while Instant::now() < until {
            // What a full queue refuses is not sent again.
            let _ = sender.send("eth0", frame);
        }
    });
}

#[test]
fn r17_flooded_pod_keeps_its_lease() {
    let lab = Lab::new();
    // Without another pod, which the flood would keep from hearing this one: all hosts
    // of this LAN share two processors.
    let (gateway, _) = two(&lab);
    let election = || gateway.status().unwrap().election.unwrap();
    let before = election();

    let host: Value = serde_json::from_str(&lab.client.run("ip -j link show eth0")).unwrap();
    let parse =
        |mac: &str| -> Vec<u8> { mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect() };
    let ethernet = |ethertype: [u8; 2]| {
        [&parse(&lab.mac())[..], &parse(host[0]["address"].as_str().unwrap()), &ethertype].concat()
    };
    let uid =
        [0x6b, 0x1f, 0x3c, 0x52, 0x0a, 0x43, 0x4f, 0x0e, 0x9d, 0x0b, 0x3f, 0x1c, 0x2a, 0x9d, 0x8e, 0x77];
    // Noise, frames of the gateway with another key, and ARP about the address.
    let noise = [&ethernet([0x88, 0xb5])[..], &[0xff; 100]].concat();
    let mut forged = [&ethernet([0x88, 0xb5])[..], &[2, 1], &uid, &[1; 48], &[0, 50, 200, 0, 0]].concat();
    forged.extend([0; 16]);
    let source: arp::Mac = parse(host[0]["address"].as_str().unwrap()).try_into().unwrap();
    // A reply: the kernel would answer requests, until it can do nothing else.
    let mut arp = arp::request(source, [172, 18, 0, 50].into(), vip());
    arp[..6].copy_from_slice(&parse(&lab.mac()));
    arp[21] = 2;
    for frame in [&noise[..], &forged, &arp] {
        flood(&lab, frame);
        let after = election();
        assert_eq!((after.term, after.since_ms), (before.term, before.since_ms));
    }
    for reason in ["bad_tag", "dropped"] {
        let name = format!("lb_svc_gateway_election_rejected_total{{reason=\"{reason}\"}}");
        assert!(gateway.metric(&name) > 0, "{reason}");
    }
    assert_eq!(gateway.metric("lb_svc_gateway_election_rejected_total{reason=\"foreign\"}"), 0);
}

/// Two pods at an interval that a busy machine keeps to.
fn two_at_leisure(lab: &Lab) -> (Gateway<'_>, Site, Value) {
    let mut config = config(&[("TCP", 80), ("UDP", 53)]);
    config["election"]["intervalMs"] = json!(200);
    lab.key(7);
    let gateway = lab.serving(&config);
    is(&gateway, Role::Active);
    let other = lab.another(1);
    other.key(7);
    (gateway, other, config)
}

fn term(gateway: &Gateway) -> Option<(u64, u64)> {
    let election = gateway.status()?.election?;
    Some((election.term, election.since_ms))
}

#[test]
fn r09_flooded_scrapes_move_no_address() {
    let lab = Lab::new();
    let (first, other, config) = two_at_leisure(&lab);
    let second = other.serving(&config);
    is(&second, Role::Standby);
    wait("the standby to be heard", || (first.status()?.election?.peers.len() == 1).then_some(()));
    // What a scrape has the kernel walk through.
    for port in 0..200 {
        let _ = lab.client.udp().send_to(b"x", format!("{VIP}:{}", 2000 + port));
    }
    let before = term(&first).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                let until = Instant::now() + Duration::from_secs(3);
                while Instant::now() < until {
                    // One that gets no connection tries again.
                    let _ = first.get("/metrics");
                }
            });
        }
    });
    let (after, _) = wait("its status", || term(&first));
    assert_eq!(after, before);
    is(&second, Role::Standby);
}

#[test]
fn r16_wedged_loop_keeps_the_lease_for_a_while_and_then_hands_over() {
    let lab = Lab::new();
    let (first, other, config) = two_at_leisure(&lab);
    let second = other.serving(&config);
    is(&second, Role::Standby);
    wait("the standby to be heard", || (first.status()?.election?.peers.len() == 1).then_some(()));
    let before = term(&second).unwrap();
    // A file that blocks whoever opens it, as that of a disk that does not answer.
    let volume = lab.dir().join("config");
    let file = volume.join("..data").join("config.json");
    let (kept, pipe) = (lab.dir().join("kept"), lab.dir().join("pipe"));
    std::fs::copy(&file, &kept).unwrap();
    lab.pod.run(&format!("mkfifo {}", pipe.display()));
    std::fs::rename(&pipe, &file).unwrap();
    std::fs::write(volume.join("woken"), "").unwrap();
    wait("the loop to be wedged", || first.get("/livez").is_none().then_some(()));
    let wedged = Instant::now();
    let socket = lab.client.udp();
    while wedged.elapsed() < Duration::from_secs(3) {
        wait("an answer", || exchange(&socket, &format!("{VIP}:53")));
        assert_eq!((role(&second), term(&second)), (Some(Role::Standby), Some(before)));
    }
    // What does not come back gives the address away.
    wait("the other to take over", || (role(&second)? == Role::Active).then_some(()));
    assert!(second.status().unwrap().election.unwrap().why.contains("handed over"));
    wait("an answer", || exchange(&lab.client.udp(), &format!("{VIP}:53")));
    // And takes part again when it does.
    let mut pipe = std::fs::File::options().write(true).open(&file).unwrap();
    std::fs::rename(&kept, &file).unwrap();
    pipe.write_all(config.to_string().as_bytes()).unwrap();
    drop(pipe);
    is(&first, Role::Standby);
    is(&second, Role::Active);
}

#[test]
fn r16_log_that_nobody_reads_stops_nothing() {
    let lab = Lab::new();
    let digest = lab.configure(&config(&[("TCP", 80)]));
    // A pipe that is full, and that nobody reads.
    let pipe = lab.dir().join("pipe");
    let full = format!(
        "mkfifo {pipe}; exec 3<>{pipe}; head -c 65536 /dev/zero >&3; exec \"$@\" 2>&3",
        pipe = pipe.display()
    );
    let gateway = lab.start_with(&full);
    gateway.carried_out(&digest);
    for port in [81, 80, 81] {
        gateway.carried_out(&lab.configure(&config(&[("TCP", port)])));
    }
    lab.client.tcp(&format!("{VIP}:81")).unwrap();
    let (well, took) = gateway.terminate();
    assert!(well && took < Duration::from_secs(3), "{took:?}");
}
