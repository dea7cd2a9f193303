//! What a thousand ports cost in the gateway, beside one `iptables-restore` of
//! as many rules: `e2e/bench.sh` runs it.

#[allow(dead_code)]
mod lab;

use std::fs;
use std::time::{Duration, Instant};

use lab::{CLUSTER_IP, Lab, VIP, config};

/// Ends in a line for programs to read.
#[test]
#[ignore = "a measurement: make bench"]
fn a_thousand_ports() {
    const RUNS: usize = 10;
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
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        (times[(RUNS - 1) / 2] + times[RUNS / 2]).as_secs_f64() * 500.0
    };
    println!("{ours:?}\n{bare:?}");
    println!("thousand-ports-ms {:.2} {:.2}", median(&mut ours), median(&mut bare));
}
