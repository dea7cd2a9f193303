//! nginx and HAProxy behind a Service with the PROXY protocol: what they see and log.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::ResourceExt;
use lb_svc_e2e::objects::{DIRECT, port, service};
use lb_svc_e2e::{Lab, QUICK, SLOW, Scene, client, expect, scene, until};
use serde_json::{Value, json};
use tokio::net::TcpStream;

const ANNOTATION: &str = "lb-svc.kubeovn.io/proxy-protocol";
const IMAGE: &str = "localhost/lb-svc-servers:dev";

/// Both answer with the client's address and port, and log them.
const NGINX: &str = "daemon off; master_process off; pid /tmp/pid; error_log stderr;
events {}
http {
  log_format client '$proxy_protocol_addr:$proxy_protocol_port';
  access_log /dev/stdout client;
  client_body_temp_path /tmp/a; proxy_temp_path /tmp/b; fastcgi_temp_path /tmp/c;
  uwsgi_temp_path /tmp/d; scgi_temp_path /tmp/e;
  server {
    listen 8080 proxy_protocol;
    location / { return 200 '$proxy_protocol_addr:$proxy_protocol_port'; }
  }
}
";
const HAPROXY: &str = "global
  log stdout format raw local0
defaults
  mode http
  timeout client 10s
  timeout connect 10s
  timeout server 10s
frontend web
  log global
  log-format %ci:%cp
  bind :8080 accept-proxy
  http-request return status 200 content-type text/plain lf-string %ci:%cp
";

/// A Deployment of one pod of `program`, with its configuration.
async fn serve(scene: &Scene, program: &str) {
    let (text, command) = match program {
        "nginx" => (NGINX, json!(["/usr/sbin/nginx", "-e", "stderr", "-c", "/etc/server/conf"])),
        _ => (HAPROXY, json!(["/usr/sbin/haproxy", "-db", "-f", "/etc/server/conf"])),
    };
    scene.create::<ConfigMap>(json!({ "metadata": { "name": program }, "data": { "conf": text } })).await;
    let container = json!({
        "name": "server",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": command,
        "volumeMounts": [{ "name": "conf", "mountPath": "/etc/server" }],
    });
    scene
        .create::<Deployment>(json!({
            "metadata": { "name": program },
            "spec": {
                "selector": { "matchLabels": { "app": program } },
                "template": {
                    "metadata": { "labels": { "app": program } },
                    "spec": {
                        "terminationGracePeriodSeconds": 0,
                        "containers": [container],
                        "volumes": [{ "name": "conf", "configMap": { "name": program } }],
                    },
                },
            },
        }))
        .await;
}

/// A Service of port 80 with the annotation, and others.
fn proxied(name: &str, annotations: &[(&str, &str)]) -> Value {
    let mut object = service(name, &json!([port("TCP", 80, 8080)]));
    object["metadata"]["annotations"][ANNOTATION] = "v2".into();
    for (name, value) in annotations {
        object["metadata"]["annotations"][*name] = json!(value);
    }
    object
}

/// Asks once: the client's own address, and what the server answers.
async fn ask(ip: IpAddr) -> std::io::Result<(String, String)> {
    let mut stream = TcpStream::connect(SocketAddr::new(ip, 80)).await?;
    let own = stream.local_addr()?.to_string();
    Ok((own, client::ask(&mut stream).await?))
}

/// Waits until the server answers with the client's address, and has logged it.
async fn sees_the_client(scene: &Scene, program: &str, ip: IpAddr) {
    let own = until(&format!("{program} to see the client"), SLOW, async || {
        let (own, answer) = ask(ip).await.map_err(|error| error.to_string())?;
        if answer.trim() == own { Ok(own) } else { Err(answer) }
    })
    .await;
    let pod = scene.pods(program).await[0].name_any();
    until(&format!("{program} to log {own}"), QUICK, async || {
        let log = Lab::kubectl(&["logs", &pod, "-n", &scene.namespace]).await;
        let log = log.map_err(|error| error.to_string())?;
        expect(log.lines().any(|line| line.trim() == own), log)
    })
    .await;
}

/// The message of a condition, by the end of its name.
async fn condition(scene: &Scene, service: &str, kind: &str) -> Option<(String, String)> {
    let status = scene.service(service).await.status?;
    let conditions = status.conditions.unwrap_or_default();
    let found = conditions.into_iter().find(|condition| condition.type_.ends_with(kind))?;
    Some((found.reason, found.message))
}

#[tokio::test]
async fn nginx_logs_the_clients_address() {
    scene("proxy-nginx", async |scene| {
        serve(&scene, "nginx").await;
        scene.create::<Service>(proxied("nginx", &[])).await;
        let ip = scene.address("nginx").await;
        sees_the_client(&scene, "nginx", ip).await;
        let (reason, message) = condition(&scene, "nginx", "GatewayReady").await.unwrap();
        assert!(reason == "GatewayReady" && message.contains("PROXY protocol"), "{reason} {message}");
        assert_eq!(condition(&scene, "nginx", "Limited").await, None);
        let modes = scene.service("nginx").await.status.unwrap().load_balancer.unwrap().ingress.unwrap();
        assert_eq!(modes[0].ip_mode.as_deref(), Some("Proxy"));

        // Another value is said, and changes nothing.
        let annotate = |value: Value| json!({ "metadata": { "annotations": { ANNOTATION: value } } });
        scene.patch_service("nginx", annotate(json!("v1"))).await;
        until("the value to be refused", QUICK, async || {
            let said = condition(&scene, "nginx", "AddressAllocated").await;
            let refused = said.as_ref().is_some_and(|(reason, _)| reason == "InvalidAnnotation");
            expect(refused, said)
        })
        .await;
        sees_the_client(&scene, "nginx", ip).await;

        // The gateway is replaced: its connections end, and new ones see the client again.
        scene.patch_service("nginx", annotate(json!("v2"))).await;
        let mut stream = TcpStream::connect(SocketAddr::new(ip, 80)).await.unwrap();
        client::ask(&mut stream).await.unwrap();
        let old = scene.gateway("nginx").await;
        Lab::kubectl(&["delete", "pod", &old.name_any(), "-n", &scene.namespace]).await.unwrap();
        until("the connection to end", SLOW, async || {
            expect(client::ask(&mut stream).await.is_err(), "it goes on")
        })
        .await;
        sees_the_client(&scene, "nginx", ip).await;
    })
    .await;
}

#[tokio::test]
async fn haproxy_logs_the_clients_address_and_passes_its_health_check() {
    scene("proxy-haproxy", async |scene| {
        serve(&scene, "haproxy").await;
        let checked = [
            (DIRECT, "true"),
            ("lb-svc.kubeovn.io/health-check", "http"),
            ("lb-svc.kubeovn.io/health-check-interval", "500ms"),
            ("lb-svc.kubeovn.io/health-check-timeout", "400ms"),
        ];
        scene.create::<Service>(proxied("haproxy", &checked)).await;
        let ip = scene.address("haproxy").await;
        sees_the_client(&scene, "haproxy", ip).await;
        let pod = scene.gateway("haproxy").await;
        until("the endpoint to be healthy", SLOW, async || {
            let status = scene.status(&pod).await.map_err(|error| error.to_string())?;
            expect(status.unhealthy.is_empty(), format!("{:?}", status.unhealthy))
        })
        .await;
    })
    .await;
}
