//! What it takes up.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Context;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, ListParams};
use lb_svc_e2e::objects::{backends, port, service};
use lb_svc_e2e::{client, fleet, repository};
use serde_json::json;

use crate::address;
use crate::stage::{Stage, process};
use crate::start::first_answer;
use crate::table::{Goal, Row};

/// Requests that a gateway has served before it is weighed.
const REQUESTS: usize = 1000;

/// The rows.
pub async fn measure(stage: &Stage) -> anyhow::Result<Vec<Row>> {
    stage.create::<Deployment>(backends("weighed", 1, &["tcp/80"])).await?;
    stage.ready("weighed").await?;
    let ip = address(0);
    let mut object = service("weighed", &json!([port("TCP", 80, 80)]));
    object["spec"]["loadBalancerIP"] = json!(ip);
    stage.create::<Service>(object).await?;
    first_answer(SocketAddr::new(ip, 80), Instant::now()).await?;
    for _ in 0..REQUESTS {
        client::get(ip, 80).await?;
    }
    let gateway = stage.ready("lb-svc-weighed").await?;
    let gateway = resident(&gateway, "lb-svc-gateway")?;
    stage.delete::<Service>("weighed").await?;
    stage.delete::<Deployment>("weighed").await?;
    stage.freed().await?;

    let pods: Api<Pod> = Api::namespaced(stage.lab.client.clone(), "lb-svc-system");
    let pods = pods.list(&ListParams::default().labels("app=lb-svc-controller")).await?.items;
    let controller = pods.iter().find_map(|pod| resident(pod, "lb-svc-controller").ok());
    let controller = controller.context("no controller runs")?;
    Ok(vec![
        Row::alone("gateway, resident", "MiB", gateway, Goal::AtMost(8.0)),
        Row::alone("controller, resident", "MiB", controller, Goal::AtMost(40.0)),
        Row::alone("gateway image", "MiB", image("gateway")?, Goal::None),
        Row::alone("controller image", "MiB", image("controller")?, Goal::None),
    ])
}

/// The memory a pod's process holds, in MiB.
fn resident(pod: &Pod, name: &str) -> anyhow::Result<f64> {
    fleet::resident(&process(pod, name)?)
}

fn image(name: &str) -> anyhow::Result<f64> {
    let file = repository().join(format!("target/images/{name}.tar"));
    let length = file.metadata().with_context(|| file.display().to_string())?.len();
    Ok(length as f64 / f64::from(1 << 20))
}
