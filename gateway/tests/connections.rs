//! Connections that outlive their gateway pod's ownership of the addresses.

// All of this is a test, though not by its attributes.
#![allow(clippy::unwrap_used)]

mod lab;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::election::{is, role};
use lab::{Gateway, Lab, Site, VIP, ask, exchange, wait};
use lb_svc_crds::gateway::Role;
use serde_json::{Value, json};

/// Longer than this a new connection takes only if a segment was lost: the client sends
/// its first one again after 1 s.
const RETRANSMITTED: Duration = Duration::from_millis(900);

/// At an interval that a busy machine keeps to.
fn config() -> Value {
    let mut config = lab::config(&[("TCP", 80), ("UDP", 53)]);
    config["election"]["intervalMs"] = json!(200);
    config
}

/// The first pod, which is active.
fn active(lab: &Lab) -> Gateway<'_> {
    lab.key(7);
    let gateway = lab.serving(&config());
    is(&gateway, Role::Active);
    gateway
}

/// Another pod.
fn site(lab: &Lab, number: usize) -> Site {
    let site = lab.another(number);
    site.key(7);
    site
}

/// Starts a standby.
fn standby(site: &Site) -> Gateway<'_> {
    let gateway = site.serving(&config());
    is(&gateway, Role::Standby);
    gateway
}

/// Waits until each of the pods hears the others and would hand strays to them.
fn ready(pods: &[(&Gateway, &Site)]) {
    for (gateway, site) in pods {
        wait("the others to be heard", || {
            (gateway.status()?.election?.peers.len() == pods.len() - 1).then_some(())
        });
        let asks = format!("dscp >= {:#04x}", pods.len() - 1);
        wait("strays to have somewhere to go", || {
            let (there, text) = site.pod.attempt("nft -n list chain ip lb-svc-strays stray");
            (there && text.contains(&asks)).then_some(())
        });
    }
}

fn frontend() -> String {
    format!("{VIP}:80")
}

/// Opens connections that have said something.
fn open(lab: &Lab, count: usize) -> Vec<TcpStream> {
    let mut streams: Vec<TcpStream> = (0..count).map(|_| lab.client.connect(&frontend()).unwrap()).collect();
    streams.iter_mut().for_each(|stream| drop(ask(stream).unwrap()));
    streams
}

/// Every connection answers.
fn all_answer(what: &str, streams: &mut [TcpStream]) {
    for (index, stream) in streams.iter_mut().enumerate() {
        let answer = ask(stream);
        assert!(answer.as_ref().is_ok_and(|text| !text.is_empty()), "{what}, connection {index}: {answer:?}");
    }
}

/// Ends the opening of connections, also where a test fails meanwhile.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Opens a connection every few milliseconds while `work` runs, and returns how many, and
/// which of them failed or lost a segment.
fn opening_meanwhile(lab: &Lab, work: impl FnOnce()) -> (usize, Vec<String>) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let opening = scope.spawn(|| {
            let (mut count, mut lost) = (0, Vec::new());
            while !over.load(Ordering::Relaxed) {
                let start = Instant::now();
                let answer: io::Result<String> = lab.client.enter(|| {
                    let to = frontend().parse().unwrap();
                    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
                    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                    ask(&mut stream)
                });
                count += 1;
                let took = start.elapsed();
                if answer.as_ref().map_or(true, String::is_empty) || took > RETRANSMITTED {
                    lost.push(format!("{answer:?} after {took:?}"));
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            (count, lost)
        });
        let ended = Ended(&over);
        work();
        drop(ended);
        opening.join().unwrap()
    })
}

/// The neighbour that stands for the next pod.
fn next_pod(site: &Site) -> String {
    site.pod.run("ip neigh show dev net1 nud permanent")
}

#[test]
fn planned_move_loses_no_connection() {
    let lab = Lab::new();
    let (mut first, other) = (active(&lab), site(&lab, 1));
    let second = standby(&other);
    ready(&[(&first, &lab), (&second, &other)]);
    let mut streams = open(&lab, 20);
    let (count, lost) = opening_meanwhile(&lab, || {
        std::thread::sleep(Duration::from_millis(300));
        first.ask_to_end();
        is(&second, Role::Active);
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            all_answer("after the move", &mut streams);
        }
    });
    println!("{count} new connections");
    assert!(count > 100 && lost.is_empty(), "{} of {count}: {lost:?}", lost.len());
    assert!(!first.has_ended(), "it leads connections");
    assert!(!lab.pod.run("nft list set netdev lb-svc lease").contains("net1"));
    // A close is not a stray that hangs either.
    for stream in &mut streams {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let start = Instant::now();
        assert_eq!(stream.read(&mut [0; 10]).unwrap(), 0);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    }
    drop(streams);
    let (_, took) = wait("it to end", || first.has_ended().then_some(()));
    println!("ended {took:?} after its last connection");
    wait("the ring to close", || next_pod(&other).is_empty().then_some(()));
    // It is programmed in the background, after the neighbour.
    wait("the table to go", || (!other.pod.attempt("nft list table ip lb-svc-strays").0).then_some(()));
}

#[test]
fn drain_ends_when_its_time_is_over() {
    let lab = Lab::new();
    let mut short = config();
    short["election"]["drainSeconds"] = json!(3);
    lab.key(7);
    let mut first = lab.serving(&short);
    is(&first, Role::Active);
    let other = site(&lab, 1);
    let second = other.serving(&short);
    is(&second, Role::Standby);
    ready(&[(&first, &lab), (&second, &other)]);
    let mut streams = open(&lab, 1);
    let start = Instant::now();
    first.ask_to_end();
    is(&second, Role::Active);
    while !first.has_ended() {
        assert!(start.elapsed() < Duration::from_secs(6));
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(start.elapsed() > Duration::from_secs(2), "{:?}", start.elapsed());
    // The kernel goes on until the pod is gone, which its network namespace is with it.
    lab.pod.run("ip link set net1 down");
    let start = Instant::now();
    let error = wait("a reset", || {
        ask(&mut streams[0]).err().filter(|error| error.kind() != io::ErrorKind::WouldBlock)
    })
    .0;
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn pod_without_a_successor_ends_at_once() {
    let lab = Lab::new();
    let first = active(&lab);
    let mut streams = open(&lab, 1);
    let (well, took) = first.terminate();
    assert!(well && took < Duration::from_secs(3), "{took:?}");
    // Nothing else can answer: the kernel's lease is over.
    streams[0].set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    assert!(ask(&mut streams[0]).is_err());
}

/// Of three pods two end one after the other: a connection of the first is handed on by
/// the third and the second.
#[test]
fn connections_of_two_pods_that_end_go_on() {
    let lab = Lab::new();
    let (first, other, last) = (active(&lab), site(&lab, 1), site(&lab, 2));
    let (second, third) = (standby(&other), standby(&last));
    ready(&[(&first, &lab), (&second, &other), (&third, &last)]);
    let mut streams = open(&lab, 5);
    first.ask_to_end();
    let successors = [&second, &third];
    let (active, _) = wait("a successor", || {
        successors.into_iter().position(|gateway| role(gateway) == Some(Role::Active))
    });
    streams.extend(open(&lab, 5));
    all_answer("after the first move", &mut streams);
    successors[active].ask_to_end();
    is(successors[1 - active], Role::Active);
    streams.extend(open(&lab, 5));
    for round in 0..20 {
        all_answer(&format!("after the second move, round {round}"), &mut streams);
    }
}

/// A connection that no pod knows is reset by the last one asked, and does not go round.
#[test]
fn orphan_is_reset_after_each_pod_was_asked_once() {
    let lab = Lab::new();
    let (first, other, last) = (active(&lab), site(&lab, 1), site(&lab, 2));
    let (second, third) = (standby(&other), standby(&last));
    ready(&[(&first, &lab), (&second, &other), (&third, &last)]);
    let mut streams = open(&lab, 3);
    // Its kernel goes with the pod, and the connections with that.
    lab.pod.run("ip link set net1 down");
    first.kill();
    wait("a successor", || {
        [&second, &third].into_iter().position(|gateway| role(gateway) == Some(Role::Active))
    });
    ready(&[(&second, &other), (&third, &last)]);
    for site in [&other, &last] {
        site.pod.run("nft insert rule ip lb-svc-strays stray counter");
    }
    for stream in &mut streams {
        let start = Instant::now();
        let error = ask(stream).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        assert!(start.elapsed() < RETRANSMITTED, "{:?}", start.elapsed());
    }
    // The agents mend the table; until then the counters say how often each was asked.
    for site in [&other, &last] {
        let listed = site.pod.run("nft list chain ip lb-svc-strays stray");
        if let Some((_, count)) = listed.split_once("counter packets ") {
            let count: u64 = count.split(' ').next().unwrap().parse().unwrap();
            assert!(count <= 6, "{count} strays of 3 connections");
        }
    }
    lab.client.tcp(&frontend()).unwrap();
}

/// The kernel of a pod whose process stands still leads its connections on.
#[test]
fn idle_connection_outlives_a_process_that_stood_still() {
    let lab = Lab::new();
    let (first, other) = (active(&lab), site(&lab, 1));
    let second = standby(&other);
    ready(&[(&first, &lab), (&second, &other)]);
    let mut streams = open(&lab, 5);
    first.pause(true);
    is(&second, Role::Active);
    first.pause(false);
    is(&first, Role::Standby);
    ready(&[(&first, &lab), (&second, &other)]);
    all_answer("after the take-over", &mut streams);
}

/// What a client sends to the pod that has given up the addresses, before it learns of the
/// new one, is served; ARP for them is the new one's at once.
#[test]
fn late_neighbour_is_served_by_the_pod_that_gave_up() {
    let lab = Lab::new();
    let (first, other) = (active(&lab), site(&lab, 1));
    let second = standby(&other);
    ready(&[(&first, &lab), (&second, &other)]);
    let _open = open(&lab, 1);
    // A client that learns of nothing.
    lab.client.run(&format!("ip neigh replace {VIP} dev eth0 lladdr {} nud permanent", lab.mac()));
    first.ask_to_end();
    is(&second, Role::Active);
    lab.client.tcp(&frontend()).unwrap();
    assert!(exchange(&lab.client.udp(), &format!("{VIP}:53")).is_some());
    lab.client.run(&format!("ip neigh del {VIP} dev eth0"));
    lab.client.tcp(&frontend()).unwrap();
    assert!(lab.client.run(&format!("ip neigh show {VIP}")).contains(&other.mac()));
}

/// Only the gateway's own pods hand anything over: to a host of the LAN a standby is deaf.
#[test]
fn standby_takes_no_packet_of_a_stranger() {
    let lab = Lab::new();
    let (first, other) = (active(&lab), site(&lab, 1));
    let second = standby(&other);
    ready(&[(&first, &lab), (&second, &other)]);
    lab.client.run(&format!("ip neigh replace {VIP} dev eth0 lladdr {} nud permanent", other.mac()));
    assert!(lab.client.tcp(&frontend()).is_err());
    assert!(exchange(&lab.client.udp(), &format!("{VIP}:53")).is_none());
}

#[test]
fn hand_over_heals() {
    let lab = Lab::new();
    let (first, other) = (active(&lab), site(&lab, 1));
    let second = standby(&other);
    ready(&[(&first, &lab), (&second, &other)]);
    let before = (next_pod(&lab), lab.pod.run("nft -s list table ip lb-svc-strays"));
    assert!(before.0.contains(&other.mac()), "{before:?}");
    for damage in ["nft flush table ip lb-svc-strays", "nft delete table ip lb-svc-strays"] {
        lab.pod.run(damage);
        wait("healing", || {
            let (there, text) = lab.pod.attempt("nft -s list table ip lb-svc-strays");
            (there && text == before.1).then_some(())
        });
    }
    let mut streams = open(&lab, 1);
    let _ = streams[0].write_all(b"half a line");
}
