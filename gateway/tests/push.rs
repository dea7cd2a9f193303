//! The controller hands a running gateway its configuration. Needs root; `make netns` runs
//! it, once, for the NAT back end does not matter.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use lb_svc_crds::gateway::GatewayStatus;
use lb_svc_crds::names;
use lb_svc_crds::seal::{PrivateKey, Seal};

mod lab;

use lab::{Gateway, Lab, POD_IP, VIP, config, wait};

/// A gateway of which configurations are signed.
struct Signed {
    lab: Lab,
    key: PrivateKey,
}

/// A signed configuration that serves these ports.
struct Text {
    config: String,
    seal: String,
}

impl Signed {
    fn new() -> Self {
        let lab = Lab::new();
        std::fs::create_dir(lab.dir().join("state")).unwrap();
        Self { lab, key: PrivateKey::from_seed(&[1; 32]).unwrap() }
    }

    fn text(&self, generation: u64, ports: &[u16]) -> Text {
        let ports: Vec<(&str, u16)> = ports.iter().map(|port| ("TCP", *port)).collect();
        let config = config(&ports).to_string();
        let seal = self.key.sign(&Seal::of_config("uid", generation, config.as_bytes()));
        Text { config, seal }
    }

    fn mount(&self, text: &Text) {
        self.lab.volume("config", names::SEAL_KEY, &text.seal);
        self.lab.volume("config", names::CONFIG_KEY, &text.config);
    }

    fn start(&self) -> Gateway<'_> {
        self.lab.start_with(&format!(
            "{}={} {}=uid LB_SVC_STATE_DIR={} exec \"$@\"",
            names::TRUSTED_KEYS_VARIABLE,
            self.key.public(),
            names::GATEWAY_ID_VARIABLE,
            self.lab.dir().join("state").display(),
        ))
    }

    /// Pushes `text`, of which the server sees `sent`; the response's code and body.
    fn push(&self, text: &Text, sent: &str) -> (u16, String) {
        let mut stream = self.lab.node.connect(&format!("{POD_IP}:9410")).unwrap();
        let (seal, length) = (&text.seal, text.config.len());
        let head = format!(
            "PUT {} HTTP/1.1\r\nHost: gateway\r\n{}: {seal}\r\nContent-Length: {length}\r\n\r\n",
            names::PUSH_PATH,
            names::SEAL_HEADER
        );
        write!(stream, "{head}{sent}").unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

#[test]
fn pushed_config_is_carried_out_at_once_and_by_the_next_process() {
    let scene = Signed::new();
    let (first, second) = (scene.text(1, &[80]), scene.text(2, &[80, 81]));
    scene.mount(&first);
    let gateway = scene.start();
    gateway.carried_out(&names::digest(first.config.as_bytes()));
    assert!(scene.lab.client.tcp(&format!("{VIP}:81")).is_err());

    let start = Instant::now();
    let (code, status) = scene.push(&second, &second.config);
    assert_eq!(code, 200, "{status}");
    eprintln!("carried out in {:?}", start.elapsed());
    let status: GatewayStatus = serde_json::from_str(&status).unwrap();
    let digest = names::digest(second.config.as_bytes());
    assert_eq!((status.digest.as_ref(), status.generation), (Some(&digest), Some(2)));
    scene.lab.client.tcp(&format!("{VIP}:81")).unwrap();

    // The mounted file is behind, before and after a restart.
    gateway.kill();
    let gateway = scene.start();
    gateway.carried_out(&digest);
    let status = gateway.status().unwrap();
    assert_eq!((status.generation, status.faults.len()), (Some(2), 0), "{status:?}");
    scene.lab.client.tcp(&format!("{VIP}:81")).unwrap();

    let (code, why) = scene.push(&first, &first.config);
    assert_eq!(code, 409, "{why}");
    let forged = Text { seal: second.seal.replace("uid", "uie"), ..scene.text(2, &[80, 81]) };
    assert_eq!(scene.push(&forged, &forged.config).0, 403);
    let other = Text { seal: scene.text(3, &[82]).seal, ..scene.text(3, &[80, 81]) };
    assert_eq!(scene.push(&other, &other.config).0, 422, "what is signed is something else");
    assert_eq!(gateway.status().unwrap().digest, Some(digest));
    let counted = |outcome| gateway.metric(&format!("lb_svc_gateway_pushes_total{{outcome=\"{outcome}\"}}"));
    assert_eq!(["outdated", "unsigned", "admitted"].map(counted), [1, 2, 0]);

    // The kubelet has brought a later one.
    let third = scene.text(3, &[80]);
    scene.mount(&third);
    gateway.carried_out(&names::digest(third.config.as_bytes()));
}

#[test]
fn config_as_large_as_a_config_map_is_pushed_and_no_larger_one() {
    let scene = Signed::new();
    let first = scene.text(1, &[80]);
    scene.mount(&first);
    let gateway = scene.start();
    gateway.carried_out(&names::digest(first.config.as_bytes()));
    // Read and hashed as it is built for tests, it may not be taken or in force in time for
    // the answer: what is not taken is pushed again.
    for (more, expected) in [(0, &[200, 202][..]), (1, &[413])] {
        let mut large = config(&[("TCP", 80), ("TCP", 81)]);
        large["later"] = "".into();
        let room = names::CONFIG_MAP_MAX - large.to_string().len() + more;
        large["later"] = "x".repeat(room).into();
        let config = large.to_string();
        let seal = scene.key.sign(&Seal::of_config("uid", 2 + more as u64, config.as_bytes()));
        let start = Instant::now();
        let pushed = Text { config: config.clone(), seal };
        wait(&format!("one of {expected:?}"), || {
            let (code, body) = scene.push(&pushed, if more == 0 { &config } else { "" });
            eprintln!("{code}: {body}");
            expected.contains(&code).then_some(())
        });
        eprintln!("{} bytes: answered in {:?}", config.len(), start.elapsed());
        if more == 0 {
            gateway.carried_out(&names::digest(config.as_bytes()));
        }
    }
    scene.lab.client.tcp(&format!("{VIP}:81")).unwrap();
    assert_eq!(gateway.status().unwrap().generation, Some(2));
}

#[test]
fn slow_push_holds_up_neither_probes_nor_the_loop() {
    let scene = Signed::new();
    let (first, second) = (scene.text(1, &[80]), scene.text(2, &[80, 81]));
    scene.mount(&first);
    let gateway = scene.start();
    gateway.carried_out(&names::digest(first.config.as_bytes()));
    let (code, why) = std::thread::scope(|threads| {
        let slow = threads.spawn(|| scene.push(&second, &second.config[..9]));
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(gateway.get("/readyz").unwrap().0, 200);
        let (code, why) = scene.push(&second, &second.config);
        assert_eq!(code, 503, "of the same address: {why}");
        scene.mount(&second);
        let took = gateway.carried_out(&names::digest(second.config.as_bytes()));
        assert!(took < Duration::from_secs(1), "{took:?}");
        slow.join().unwrap()
    });
    assert_eq!(code, 408, "{why}");
}
