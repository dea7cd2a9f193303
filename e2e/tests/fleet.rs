//! Services in any number cost the controller little.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use lb_svc_e2e::fleet::{self, Fleet};
use lb_svc_e2e::{scene, without_controller};

/// A tenth of what `make bench` measures.
const SERVICES: usize = 1000;

#[tokio::test]
async fn r11_settled_services_are_read_at_a_start_and_nothing_is_written() {
    scene("fleet", async |scene| {
        without_controller(&scene.lab, async || {
            let services = Fleet::settle(&scene.client(), &scene.namespace, SERVICES).await.unwrap();
            let started = services.start().await.unwrap();
            let resident = fleet::resident(&started.process()).unwrap();
            let writes: Vec<String> = services.writes().into_iter().map(|write| write.target).collect();
            started.controller.stop().await.unwrap();
            drop(services);
            fleet::clear(&scene.client(), &scene.namespace).await.unwrap();
            eprintln!("{SERVICES} Services: {:?}, {resident:.1} MiB", started.took);
            assert!(writes.is_empty(), "{writes:?}");
            assert!(started.took < Duration::from_secs(10), "{:?}", started.took);
            assert!(resident < 100.0, "{resident} MiB");
        })
        .await;
    })
    .await;
}
