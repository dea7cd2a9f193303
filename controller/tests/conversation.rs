//! What the controller says to the API server, word for word, and what it
//! makes of the answers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::IpAddr;
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::client::Body;
use lb_svc_controller::api_server::bounded::Bounds;
use lb_svc_controller::api_server::client::ApiServer;
use lb_svc_controller::api_server::master_key::Origin;
use lb_svc_controller::api_server::write::{Claimed, Written};
use lb_svc_controller::api_server::{read, watch};
use lb_svc_controller::election_key::Master;
use lb_svc_controller::index::{Index, Key};
use lb_svc_controller::queue;
use lb_svc_core::action::Action;
use lb_svc_core::gateway::assignment::{gateway_of, id_of};
use lb_svc_core::gateway::manifests::{self, DeploymentTemplate};
use lb_svc_core::gateway::pod_settings::{Configuration, Settings};
use lb_svc_core::ipam::{AddressRequest, ClaimId, Reservation};
use lb_svc_core::model::{
    self, Attachment, DeploymentState, GatewayId, GatewayLocation, GatewayRef, OwnedObject, Pod, ServiceId,
    ServiceRef,
};
use lb_svc_core::service::plan::plan;
use lb_svc_core::testing::service;
use lb_svc_crds::SubnetSpec;
use lb_svc_crds::gateway::DIRECT_VERSION;
use lb_svc_crds::names;
use lb_svc_crds::reason::Reason;
use serde_json::{Value, json};
use tower::Layer;
use tower_test::mock;

type Handle = mock::Handle<Request<Body>, Response<Body>>;

fn api_server() -> (ApiServer, Handle) {
    let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
    (ApiServer::new(Client::new(service, "default"), "controller-1".into()), handle)
}

/// What was asked: method, path with query, content type, body.
struct Asked {
    line: String,
    kind: String,
    body: Value,
}

/// Answers the next request.
async fn answer(handle: &mut Handle, status: StatusCode, body: Value) -> Asked {
    let mut handle = pin!(handle);
    let (request, send) = handle.next_request().await.expect("one more request");
    let line = format!("{} {}", request.method(), request.uri());
    let kind = request
        .headers()
        .get("content-type")
        .map(|kind| kind.to_str().unwrap().to_owned())
        .unwrap_or_default();
    let bytes = request.into_body().collect().await.unwrap().to_bytes();
    let response =
        Response::builder().status(status).body(Body::from(body.to_string().into_bytes())).unwrap();
    send.send_response(response);
    Asked { line, kind, body: serde_json::from_slice(&bytes).unwrap_or(Value::Null) }
}

fn refusal(code: u16, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "message": reason, "code": code })
}

fn owner() -> ServiceId {
    ServiceId { service: ServiceRef::new("default", "web"), uid: "uid-1".into() }
}

/// The identity of its gateway.
static ID: LazyLock<GatewayId> = LazyLock::new(|| id_of(&owner()));

/// Where the gateway is.
fn beside() -> GatewayLocation {
    GatewayLocation { gateway: GatewayRef::Dedicated(owner().service), namespace: "default".into() }
}

fn request() -> (AddressRequest, Reservation) {
    let address = "172.18.0.11".parse().unwrap();
    let request = AddressRequest {
        owner: owner(),
        provider: "lan.kube-system".parse().unwrap(),
        subnet: None,
        address: None,
        keep: false,
        limit: None,
    };
    (request, Reservation { name: "lan.kube-system.172.18.0.11".into(), subnet: "lan".into(), address })
}

fn claim_of(uid: &str) -> Value {
    json!({
        "apiVersion": "kubeovn.io/v1", "kind": "IP",
        "metadata": { "name": "lan.kube-system.172.18.0.11", "uid": "c-1", "resourceVersion": "5" },
        "spec": {
            "subnet": "lan", "provider": "lan.kube-system", "ipAddress": "172.18.0.11",
            "namespace": "default", "serviceName": "web", "serviceUid": uid, "requested": "dynamic",
        },
    })
}

#[tokio::test]
async fn claim_is_posted_under_the_name_of_the_address() {
    let (api_server, mut handle) = api_server();
    let (request, reservation) = request();
    let (claimed, asked) = tokio::join!(
        api_server.claim(&request, &reservation, "default"),
        answer(&mut handle, StatusCode::CREATED, claim_of("uid-1"))
    );
    assert_eq!(asked.line, "POST /apis/kubeovn.io/v1/ips?&fieldManager=lb-svc-controller");
    assert_eq!(asked.body["metadata"]["name"], "lan.kube-system.172.18.0.11");
    assert_eq!(asked.body["spec"]["v4IpAddress"], "172.18.0.11");
    assert_eq!(asked.body["spec"]["serviceUid"], "uid-1");
    assert_eq!(asked.body["spec"]["requested"], "dynamic");
    let Claimed::Exists(claim) = claimed.unwrap() else { panic!("vanished") };
    assert_eq!(claim.owner, owner());
}

#[tokio::test]
async fn existing_claim_is_read() {
    let (api_server, mut handle) = api_server();
    let (request, reservation) = request();
    let talk = async {
        answer(&mut handle, StatusCode::CONFLICT, refusal(409, "AlreadyExists")).await;
        answer(&mut handle, StatusCode::OK, claim_of("uid-9")).await
    };
    let (claimed, asked) = tokio::join!(api_server.claim(&request, &reservation, "default"), talk);
    assert_eq!(asked.line, "GET /apis/kubeovn.io/v1/ips/lan.kube-system.172.18.0.11");
    let Claimed::Exists(claim) = claimed.unwrap() else { panic!("vanished") };
    assert_eq!(claim.owner.uid, "uid-9");

    let talk = async {
        answer(&mut handle, StatusCode::CONFLICT, refusal(409, "AlreadyExists")).await;
        answer(&mut handle, StatusCode::NOT_FOUND, refusal(404, "NotFound")).await
    };
    let (claimed, _) = tokio::join!(api_server.claim(&request, &reservation, "default"), talk);
    assert!(matches!(claimed.unwrap(), Claimed::Vanished));
}

#[tokio::test]
async fn r40_object_that_is_no_claim_is_told_from_one_that_vanished() {
    let (api_server, mut handle) = api_server();
    let (request, reservation) = request();
    let mut no_service = claim_of("uid-9");
    no_service["spec"]["serviceName"] = json!("No Service");
    let mut not_of_the_type = claim_of("uid-9");
    not_of_the_type["spec"] = json!({ "podName": "kube-ovn" });
    for object in [no_service, not_of_the_type] {
        let talk = async {
            answer(&mut handle, StatusCode::CONFLICT, refusal(409, "AlreadyExists")).await;
            answer(&mut handle, StatusCode::OK, object).await
        };
        let (claimed, _) = tokio::join!(api_server.claim(&request, &reservation, "default"), talk);
        let Claimed::NoClaim(id) = claimed.unwrap() else { panic!("a claim") };
        assert_eq!((id.name, id.uid.as_str()), (reservation.name.clone(), "c-1"));
    }
}

#[tokio::test]
async fn delete_has_uid_and_resource_version() {
    let gateway = beside();
    let (api_server, mut handle) = api_server();
    let claim = ClaimId { name: "c".into(), uid: "c-1".into(), resource_version: "5".into() };
    let (done, asked) =
        tokio::join!(api_server.release(&claim), answer(&mut handle, StatusCode::OK, refusal(200, "")));
    done.unwrap();
    assert_eq!(asked.line, "DELETE /apis/kubeovn.io/v1/ips/c?");
    assert_eq!(asked.body["preconditions"], json!({ "uid": "c-1", "resourceVersion": "5" }));

    let (done, asked) = tokio::join!(
        api_server.delete_deployment(&gateway, "d-1", "6"),
        answer(&mut handle, StatusCode::NOT_FOUND, refusal(404, "NotFound"))
    );
    done.expect("gone is as good as deleted");
    assert_eq!(asked.line, "DELETE /apis/apps/v1/namespaces/default/deployments/lb-svc-web?");
    assert_eq!(asked.body["preconditions"], json!({ "uid": "d-1", "resourceVersion": "6" }));
    assert_eq!(asked.body["propagationPolicy"], "Foreground");
}

#[tokio::test]
async fn r41_replica_set_is_deleted_only_if_no_deployment_owns_it() {
    let (api_server, mut handle) = api_server();
    let set = |name: &str, uid: &str, owners: Value| {
        json!({
            "metadata": { "name": name, "uid": uid, "resourceVersion": "7", "ownerReferences": owners },
            "spec": { "selector": {} },
        })
    };
    let deployment = json!([{ "apiVersion": "apps/v1", "kind": "Deployment", "name": "lb-svc-web",
        "uid": "d", "controller": true }]);
    let items = [
        set("lb-svc-web-5b7c", "rs-1", json!([])),
        set("lb-svc-web-5b7d", "rs-2", deployment),
        set("theirs", "rs-3", json!([])),
    ];
    let list = json!({ "apiVersion": "apps/v1", "kind": "ReplicaSetList", "metadata": {}, "items": items });
    let talk = async {
        let listed = answer(&mut handle, StatusCode::OK, list).await.line;
        (listed, answer(&mut handle, StatusCode::OK, json!({})).await)
    };
    let gateway = beside();
    let (deleted, (listed, asked)) = tokio::join!(api_server.delete_orphans(&gateway, &ID), talk);
    assert_eq!(deleted.unwrap(), ["lb-svc-web-5b7c"]);
    assert!(listed.contains("lb-svc.kubeovn.io%2Fservice-uid%3Duid-1"), "{listed}");
    assert_eq!(asked.line, "DELETE /apis/apps/v1/namespaces/default/replicasets/lb-svc-web-5b7c?");
    assert_eq!(asked.body["preconditions"], json!({ "uid": "rs-1", "resourceVersion": "7" }));
    assert_eq!(asked.body["propagationPolicy"], "Background");
}

#[tokio::test]
async fn address_is_filled_into_the_service_that_was_seen() {
    let (api_server, mut handle) = api_server();
    let service = model::Service { id: owner(), ..service() };
    let (done, asked) = tokio::join!(
        api_server.set_address(&service, Some("172.18.0.11")),
        answer(&mut handle, StatusCode::CONFLICT, refusal(409, "Conflict"))
    );
    assert!(done.unwrap_err().is_conflict());
    assert_eq!(asked.line, "PATCH /api/v1/namespaces/default/services/web?&fieldManager=lb-svc-controller");
    assert_eq!(asked.kind, "application/merge-patch+json");
    assert_eq!(
        asked.body,
        json!({
            "metadata": { "uid": "uid-1", "resourceVersion": "7" },
            "spec": { "loadBalancerIP": "172.18.0.11" },
        })
    );
}

#[tokio::test]
async fn start_failure_is_the_last_event_without_ids() {
    let (api_server, mut handle) = api_server();
    let event = |minute: u32, reason: &str, message: &str| {
        json!({
            "metadata": { "name": minute.to_string(), "namespace": "default" },
            "involvedObject": {}, "type": "Warning", "reason": reason, "message": message,
            "lastTimestamp": format!("2026-01-01T00:{minute:02}:00Z"),
        })
    };
    let id = |digit: &str| digit.repeat(64);
    let message = |id: &str| format!("sandbox \"{id}\": [default/web:lan]: Link not found");
    let told = |digit: &str| {
        json!({ "kind": "EventList", "apiVersion": "v1", "metadata": {}, "items": [
            event(2, "FailedMount", "a volume"),
            event(3, "FailedCreatePodSandBox", &message(&id(digit))),
            event(4, "FailedScheduling", "no node"),
        ] })
    };
    let mut said = Vec::new();
    for digit in ["1", "f"] {
        let (why, asked) = tokio::join!(
            api_server.start_failure("default", "p-1"),
            answer(&mut handle, StatusCode::OK, told(digit))
        );
        assert_eq!(
            asked.line,
            "GET /api/v1/namespaces/default/events?&fieldSelector=involvedObject.uid%3Dp-1%2Ctype%3DWarning&limit=100"
        );
        said.push(why.unwrap().unwrap());
    }
    assert_eq!(said[0], ("FailedCreatePodSandBox".to_owned(), message("…")));
    assert_eq!(said[1], said[0], "however often it is tried");
}

#[tokio::test]
async fn fault_32_subnet_spec_is_never_written() {
    let (api_server, mut handle) = api_server();
    let spec = lb_svc_crds::SubnetSpec {
        provider: "lan.kube-system".into(),
        cidr_block: "10.0.0.9/24".into(),
        exclude_ips: vec!["10.0.0.0/30".into(), "host".into()],
        ..Default::default()
    };
    let subnet = lb_svc_crds::Subnet::new("lan", spec);
    let object = serde_json::to_value(&subnet).unwrap();
    let subnet = read::subnet(&subnet);
    for held in [true, false] {
        let (done, asked) = tokio::join!(
            api_server.hold_subnet("lan", &subnet, held),
            answer(&mut handle, StatusCode::OK, object.clone())
        );
        done.unwrap();
        let fields: Vec<&String> = asked.body.as_object().unwrap().keys().collect();
        assert_eq!(fields, ["apiVersion", "kind", "metadata"]);
    }
    let status = Default::default();
    let (done, asked) = tokio::join!(
        api_server.set_subnet_status("lan", &subnet, &status),
        answer(&mut handle, StatusCode::OK, object)
    );
    done.unwrap();
    assert!(asked.line.starts_with("PATCH /apis/kubeovn.io/v1/subnets/lan/status?"), "{}", asked.line);
    let fields: Vec<&String> = asked.body.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["apiVersion", "kind", "metadata", "status"]);
}

#[tokio::test]
async fn config_map_is_posted_first_and_applied_later() {
    let gateway = beside();
    let (api_server, mut handle) = api_server();
    let (created, asked) = tokio::join!(
        api_server.write_config(&ID, &gateway, "{}", Some("seal"), None),
        answer(&mut handle, StatusCode::CREATED, json!({ "metadata": { "name": "lb-svc-web" } }))
    );
    assert!(matches!(created.unwrap(), Written::Ours(_)));
    assert_eq!(asked.line, "POST /api/v1/namespaces/default/configmaps?&fieldManager=lb-svc-controller");
    assert_eq!(asked.body["metadata"]["ownerReferences"][0]["uid"], "uid-1");

    let known = child("cm-1", String::new());
    let (created, asked) = tokio::join!(
        api_server.write_config(&ID, &gateway, "{\"version\":1}", Some("seal"), Some(&known)),
        answer(&mut handle, StatusCode::OK, json!({ "metadata": { "name": "lb-svc-web" } }))
    );
    assert!(matches!(created.unwrap(), Written::Ours(_)));
    assert!(
        asked.line.starts_with("PATCH /api/v1/namespaces/default/configmaps/lb-svc-web?"),
        "{}",
        asked.line
    );
    assert!(asked.line.contains("fieldManager=lb-svc-controller") && asked.line.contains("force=true"));
    assert_eq!(asked.kind, "application/apply-patch+yaml");
    assert_eq!(asked.body["data"]["config.json"], "{\"version\":1}");
    assert_eq!(asked.body["metadata"]["uid"], "cm-1", "not another of its name");
    // R21: what another controller has written since is not undone.
    assert_eq!(asked.body["metadata"]["resourceVersion"], "6");
}

#[tokio::test]
async fn w4_config_map_that_others_made_immutable_is_made_anew() {
    let (gateway, known) = (beside(), child("cm-1", String::new()));
    let (api_server, mut handle) = api_server();
    let talk = async |handle: &mut Handle, uid: &str, immutable: bool| {
        answer(handle, StatusCode::UNPROCESSABLE_ENTITY, refusal(422, "Invalid")).await;
        let metadata = json!({ "namespace": "default", "name": "lb-svc-web", "uid": uid });
        answer(handle, StatusCode::OK, json!({ "metadata": metadata, "immutable": immutable })).await
    };
    let (written, (deleted, made)) =
        tokio::join!(api_server.write_config(&ID, &gateway, "{}", Some("seal"), Some(&known)), async {
            talk(&mut handle, "cm-1", true).await;
            let deleted = answer(&mut handle, StatusCode::OK, refusal(200, "Success")).await;
            (deleted, answer(&mut handle, StatusCode::CREATED, json!({ "metadata": {} })).await)
        });
    assert!(matches!(written.unwrap(), Written::Ours(_)));
    assert_eq!(deleted.line, "DELETE /api/v1/namespaces/default/configmaps/lb-svc-web?");
    assert_eq!(deleted.body["preconditions"], json!({ "uid": "cm-1", "resourceVersion": "6" }));
    assert!(made.line.starts_with("POST /api/v1/namespaces/default/configmaps?"), "{}", made.line);
    assert_eq!(made.body["data"]["config.json"], "{}");

    // What is refused for another reason stays, and so does another of the name.
    for (uid, immutable) in [("cm-1", false), ("cm-2", true)] {
        let (written, _) = tokio::join!(
            api_server.write_config(&ID, &gateway, "{}", Some("seal"), Some(&known)),
            talk(&mut handle, uid, immutable)
        );
        assert!(written.is_err_and(|error| error.is_refusal()), "{uid}");
    }
}

#[tokio::test]
async fn foreign_object_is_detected_not_overwritten() {
    let gateway = beside();
    let (api_server, mut handle) = api_server();
    let talk = async |handle: &mut Handle, annotations: Value| {
        answer(handle, StatusCode::CONFLICT, refusal(409, "AlreadyExists")).await;
        let labels = json!({ "app.kubernetes.io/managed-by": "lb-svc" });
        let metadata = json!({ "namespace": "default", "name": "lb-svc-web", "labels": labels, "annotations": annotations });
        answer(handle, StatusCode::OK, json!({ "metadata": metadata })).await.line
    };

    let (created, asked) = tokio::join!(
        api_server.write_config(&ID, &gateway, "{}", Some("seal"), None),
        talk(&mut handle, json!({}))
    );
    assert!(matches!(created.unwrap(), Written::Foreign));
    assert_eq!(asked, "GET /api/v1/namespaces/default/configmaps/lb-svc-web");
    let ours = json!({ "lb-svc.kubeovn.io/service": "default/web" });
    let (created, _) = tokio::join!(
        api_server.write_config(&ID, &gateway, "{}", Some("seal"), None),
        talk(&mut handle, ours)
    );
    assert!(matches!(created.unwrap(), Written::Already), "our own, which the cache has not shown yet");
}

fn child<T>(uid: &str, content: T) -> OwnedObject<T> {
    let (uid, gateway_id) = (uid.to_owned(), Some("uid-1".into()));
    OwnedObject { uid, resource_version: "6".into(), deleting: false, gateway_id, content }
}

fn deployment(own: &Settings) -> Value {
    let (attachment, configuration) = (Attachment::default(), Configuration::new("gateway:1", false));
    let provider = "lan.kube-system".parse().unwrap();
    let all = &configuration.gateway;
    manifests::deployment(
        &ID,
        &beside(),
        &DeploymentTemplate { provider: &provider, attachment: &attachment, all, own, trusted: &[] },
    )
}

#[test]
fn fault_21_gateway_leaves_unreachable_node_soon() {
    let wanted = deployment(&Settings::default());
    let pod = &wanted["spec"]["template"]["spec"];
    for taint in ["not-ready", "unreachable"] {
        let tolerations = pod["tolerations"].as_array().unwrap();
        let its = tolerations.iter().find(|its| its["key"] == format!("node.kubernetes.io/{taint}")).unwrap();
        assert!(its["tolerationSeconds"].as_u64().unwrap() <= 10, "{taint}");
    }
    // The pod object outlives what could answer for the address.
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > 0);
    assert_eq!(wanted["spec"]["strategy"]["type"], "Recreate");
    assert_eq!(pod["containers"][0]["readinessProbe"]["httpGet"]["path"], "/readyz");
}

#[tokio::test]
async fn deployment_is_posted_first_and_replaced_later() {
    let gateway = beside();
    let (api_server, mut handle) = api_server();
    let wanted = deployment(&Settings::default());
    let (created, asked) = tokio::join!(
        api_server.write_deployment(&gateway, &wanted, None),
        answer(&mut handle, StatusCode::CREATED, json!({ "metadata": { "name": "lb-svc-web" } }))
    );
    assert!(matches!(created.unwrap(), Written::Ours(_)));
    assert_eq!(
        asked.line,
        "POST /apis/apps/v1/namespaces/default/deployments?&fieldManager=lb-svc-controller"
    );
    let mut live = asked.body;
    live["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = json!("1");
    live["metadata"]["finalizers"] = json!(["example.com/theirs"]);
    live["spec"]["template"]["spec"]["nodeSelector"] = json!({ "set": "earlier" });
    let live = read::live(&serde_json::from_value(live).unwrap());
    let known = child("d-1", DeploymentState { live, ..DeploymentState::default() });

    let (written, asked) = tokio::join!(
        api_server.write_deployment(&gateway, &wanted, Some(&known)),
        answer(&mut handle, StatusCode::CONFLICT, refusal(409, "Conflict"))
    );
    assert!(written.unwrap_err().is_conflict(), "it is not forced");
    assert_eq!(
        asked.line,
        "PUT /apis/apps/v1/namespaces/default/deployments/lb-svc-web?&fieldManager=lb-svc-controller"
    );
    let metadata = &asked.body["metadata"];
    assert_eq!((&metadata["uid"], &metadata["resourceVersion"]), (&json!("d-1"), &json!("6")));
    assert_eq!(metadata["annotations"]["deployment.kubernetes.io/revision"], "1");
    assert_eq!(metadata["finalizers"], json!(["example.com/theirs"]));
    let selected = &asked.body["spec"]["template"]["spec"]["nodeSelector"];
    assert_eq!(*selected, json!({ "kubernetes.io/os": "linux" }), "what is set no more goes");
}

#[tokio::test]
async fn refusal_is_told_from_transient_error() {
    let gateway = beside();
    for (code, refused) in
        [(400, true), (403, true), (404, true), (422, true), (409, false), (429, false), (500, false)]
    {
        let (api_server, mut handle) = api_server();
        let wanted = deployment(&Settings::default());
        let answered = StatusCode::from_u16(code).unwrap();
        // A conflict is looked into.
        let talk = async {
            answer(&mut handle, answered, refusal(code, "No")).await;
            if code == 409 {
                answer(&mut handle, StatusCode::INTERNAL_SERVER_ERROR, refusal(500, "No")).await;
            }
        };
        let (written, ()) = tokio::join!(api_server.write_deployment(&gateway, &wanted, None), talk);
        assert_eq!(written.unwrap_err().is_refusal(), refused, "{code}");
    }
}

#[tokio::test]
async fn gateway_in_other_namespace_has_no_owner_reference() {
    let (api_server, mut handle) = api_server();
    let (owner, (request, reservation)) = (owner(), request());
    let apart = GatewayLocation {
        gateway: GatewayRef::Dedicated(owner.service.clone()),
        namespace: "gateways".into(),
    };
    let name = apart.name();
    let (_, asked) = tokio::join!(
        api_server.claim(&request, &reservation, "gateways"),
        answer(&mut handle, StatusCode::CREATED, claim_of("uid-1"))
    );
    assert_eq!(asked.body["metadata"]["labels"]["lb-svc.kubeovn.io/gateway-namespace"], "gateways");

    let (_, asked) = tokio::join!(
        api_server.write_config(&ID, &apart, "{}", Some("seal"), None),
        answer(&mut handle, StatusCode::CREATED, json!({ "metadata": { "name": name } }))
    );
    assert_eq!(asked.line, "POST /api/v1/namespaces/gateways/configmaps?&fieldManager=lb-svc-controller");
    let metadata = &asked.body["metadata"];
    assert_eq!((&metadata["name"], &metadata["namespace"]), (&json!(name), &json!("gateways")));
    assert!(metadata["ownerReferences"].is_null(), "it could not be in another namespace");
    assert_eq!(metadata["annotations"]["lb-svc.kubeovn.io/service"], "default/web");

    let claim = ClaimId { name: "c".into(), uid: "c-1".into(), resource_version: "5".into() };
    for (gateway, label) in [(apart, json!("gateways")), (beside(), Value::Null)] {
        let (_, asked) = tokio::join!(
            api_server.set_gateway_namespace(&claim, &gateway),
            answer(&mut handle, StatusCode::OK, claim_of("uid-1"))
        );
        assert_eq!(
            asked.body["metadata"],
            json!({
                "uid": "c-1", "resourceVersion": "5",
                "labels": { "lb-svc.kubeovn.io/gateway-namespace": label },
            })
        );
    }
}

#[tokio::test]
async fn gate_condition_is_merged_into_the_pods() {
    let (api_server, mut handle) = api_server();
    let pod = ("default".to_owned(), "web-0".to_owned());
    let (done, asked) = tokio::join!(
        api_server.set_gate(&pod, "p-1", true, Reason::Served, "its gateways lead to it"),
        answer(&mut handle, StatusCode::OK, json!({ "metadata": { "name": "web-0" } }))
    );
    assert!(done.unwrap().is_some());
    assert_eq!(
        asked.line,
        "PATCH /api/v1/namespaces/default/pods/web-0/status?&fieldManager=lb-svc-controller"
    );
    assert_eq!(asked.kind, "application/strategic-merge-patch+json");
    assert_eq!(asked.body["metadata"], json!({ "uid": "p-1" }), "not another of its name");
    let conditions = asked.body["status"]["conditions"].as_array().unwrap();
    let [condition] = &conditions[..] else { panic!("{conditions:?}") };
    assert_eq!((&condition["type"], &condition["status"]), (&json!(names::READINESS_GATE), &json!("True")));
    assert!(condition["lastTransitionTime"].is_string());

    let (done, _) = tokio::join!(
        api_server.set_gate(&pod, "p-1", true, Reason::Served, "its gateways lead to it"),
        answer(&mut handle, StatusCode::NOT_FOUND, refusal(404, "NotFound"))
    );
    assert!(done.expect("gone is no failure").is_none());
}

/// What the watches show of the Service and of its endpoints.
fn direct_service() -> Service {
    let object = json!({
        "metadata": {
            "namespace": "default", "name": "web", "uid": "uid-1", "resourceVersion": "1",
            "annotations": {
                names::PROVIDER_ANNOTATION: "lan.kube-system", names::DIRECT_ACCESS_ANNOTATION: "true",
            },
        },
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.109.201.193"], "loadBalancerIP": "172.18.0.11",
            "ports": [{ "name": "http", "port": 80, "protocol": "TCP" }],
        },
    });
    serde_json::from_value(object).unwrap()
}

fn endpoint_slice(addresses: &[&str]) -> EndpointSlice {
    let object = json!({
        "metadata": { "labels": { read::SERVICE_NAME_LABEL: "web" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": addresses.iter().map(|address| json!({ "addresses": [address] })).collect::<Value>(),
    });
    serde_json::from_value(object).unwrap()
}

#[tokio::test]
async fn changed_endpoints_are_written_and_pods_nudged() {
    let (api_server, mut handle) = api_server();
    let (owner, gateway, slice) = (owner(), beside(), ("default".to_owned(), "web-1".to_owned()));
    let mut index = Index::default();
    let spec = SubnetSpec {
        provider: "lan.kube-system".into(),
        cidr_block: "172.18.0.0/16".into(),
        ..SubnetSpec::default()
    };
    index.set_subnet("lan", Some(read::subnet(&lb_svc_crds::Subnet::new("lan", spec))));
    index.set_claim(read::claim(&serde_json::from_value(claim_of("uid-1")).unwrap()).unwrap());
    index.set_service(owner.service.clone(), read::service(&direct_service()));
    let pod = Pod {
        name: "gw".into(),
        uid: "g-1".into(),
        gateway_id: Some("uid-1".into()),
        ready: true,
        mac: Some("ba:85:f7:02:9f:42".into()),
        ..Pod::default()
    };
    index.set_pod(gateway.clone(), "gw", Some(pod));
    index.set_config(gateway.clone(), Some(child("cm-1", String::new())), None);

    for addresses in [&["10.0.0.1"][..], &["10.0.0.1", "10.0.0.2"]] {
        let keys = index.set_slice(&slice, read::slice(&endpoint_slice(addresses)));
        assert_eq!(keys, [Key::Gateway(gateway_of(&owner.service))]);
        let observed = index.observe(&gateway_of(&owner.service), Instant::now());
        let planned = plan(&observed).actions;
        let written = planned.iter().position(|action| matches!(action, Action::WriteConfig(_))).unwrap();
        let Action::WriteConfig(content) = &planned[written] else { unreachable!() };
        let (done, asked) = tokio::join!(
            api_server.write_config(&ID, &gateway, content, None, observed.gateway.config.as_ref()),
            answer(&mut handle, StatusCode::OK, json!({ "metadata": { "name": "lb-svc-web" } }))
        );
        assert!(matches!(done.unwrap(), Written::Ours(_)));
        let text = asked.body["data"]["config.json"].as_str().unwrap();
        let config: Value = serde_json::from_str(text).unwrap();
        assert_eq!(config["version"], DIRECT_VERSION);
        let target = &config["frontends"][0]["target"];
        assert_eq!(
            target["subsets"],
            json!([{
                "ports": [{ "protocol": "TCP", "port": 80, "targetPort": 8080 }],
                "addresses": addresses,
            }])
        );

        let told = planned[written..].iter().find_map(|action| match action {
            Action::AnnotatePod { annotations, nudge: Some(_), .. } => Some(annotations),
            _ => None,
        });
        let (_, asked) = tokio::join!(
            api_server.annotate_pod("default", "gw", "g-1", told.expect("after it a nudge")),
            answer(&mut handle, StatusCode::OK, json!({ "metadata": { "name": "gw" } }))
        );
        assert!(asked.line.starts_with("PATCH /api/v1/namespaces/default/pods/gw?"), "{}", asked.line);
        let digest = names::digest(text.as_bytes());
        assert_eq!(asked.body["metadata"]["annotations"][names::CONFIG_ANNOTATION], format!("{digest}.0"));
        index.set_config(gateway.clone(), Some(child("cm-1", text.to_owned())), None);
    }
}

fn gateway() -> GatewayLocation {
    GatewayLocation { gateway: GatewayRef::Dedicated(owner().service), namespace: "default".into() }
}

fn master_of(bytes: &[u8]) -> Value {
    json!({ "metadata": { "name": "lb-svc-gateway-keys" }, "data": { "master": ByteString(bytes.to_vec()) } })
}

#[tokio::test]
async fn key_secret_is_created_once_and_never_read() {
    let (api_server, mut handle) = api_server();
    let (gateway, master) = (gateway(), Master::kept(&[1; 32]).unwrap());
    for (status, body, is_made) in [
        (StatusCode::CREATED, json!({ "metadata": {} }), true),
        (StatusCode::CONFLICT, refusal(409, "AlreadyExists"), true),
        (StatusCode::FORBIDDEN, refusal(403, "Forbidden"), false),
    ] {
        let (done, asked) = tokio::join!(
            api_server.write_key(&ID, &gateway, "cm-1", &master),
            answer(&mut handle, status, body)
        );
        assert_eq!(done.is_ok(), is_made, "{status}");
        assert!(done.err().is_none_or(|error| error.is_refusal()));
        assert_eq!(asked.line, "POST /api/v1/namespaces/default/secrets?&fieldManager=lb-svc-controller");
        assert_eq!(asked.body["metadata"]["ownerReferences"][0]["uid"], "cm-1");
        let key: ByteString = serde_json::from_value(asked.body["data"]["key"].clone()).unwrap();
        assert_eq!(key.0, master.key("uid-1"));
    }
}

#[tokio::test]
async fn master_key_is_created_if_missing_and_kept() {
    let (api_server, mut handle) = api_server();
    let get = "GET /api/v1/namespaces/lb-svc-system/secrets/lb-svc-gateway-keys";
    let (master, asked) = tokio::join!(
        api_server.master("lb-svc-system", None),
        answer(&mut handle, StatusCode::OK, master_of(&[1; 32]))
    );
    assert_eq!(asked.line, get);
    assert_eq!(master.unwrap().0.bytes(), [1; 32]);

    let talk = async {
        answer(&mut handle, StatusCode::NOT_FOUND, refusal(404, "NotFound")).await;
        answer(&mut handle, StatusCode::CREATED, master_of(&[1; 32])).await
    };
    let (master, asked) = tokio::join!(api_server.master("lb-svc-system", None), talk);
    assert_eq!(asked.line, "POST /api/v1/namespaces/lb-svc-system/secrets?&fieldManager=lb-svc-controller");
    let made: ByteString = serde_json::from_value(asked.body["data"]["master"].clone()).unwrap();
    assert_eq!(master.unwrap().0.bytes(), made.0);

    // Another controller is quicker.
    let talk = async {
        answer(&mut handle, StatusCode::NOT_FOUND, refusal(404, "NotFound")).await;
        answer(&mut handle, StatusCode::CONFLICT, refusal(409, "AlreadyExists")).await;
        answer(&mut handle, StatusCode::OK, master_of(&[2; 32])).await
    };
    let (master, asked) = tokio::join!(api_server.master("lb-svc-system", None), talk);
    assert_eq!(asked.line, get);
    assert_eq!(master.unwrap().0.bytes(), [2; 32]);

    // What somebody else put there is not guessed at.
    let (master, _) = tokio::join!(
        api_server.master("lb-svc-system", None),
        answer(&mut handle, StatusCode::OK, master_of(&[1; 31]))
    );
    let error = master.err().unwrap();
    assert!(error.is_refusal() && error.to_string().contains("lb-svc-system/lb-svc-gateway-keys"), "{error}");
}

#[tokio::test]
async fn r52_deleted_master_key_is_put_back() {
    let (api_server, mut handle) = api_server();
    let known = Master::kept(&[1; 32]).unwrap();
    let talk = async {
        answer(&mut handle, StatusCode::NOT_FOUND, refusal(404, "NotFound")).await;
        answer(&mut handle, StatusCode::CREATED, master_of(&[1; 32])).await
    };
    let (master, asked) = tokio::join!(api_server.master("lb-svc-system", Some(&known)), talk);
    let made: ByteString = serde_json::from_value(asked.body["data"]["master"].clone()).unwrap();
    assert_eq!(made.0, [1; 32]);
    assert_eq!(master.unwrap().1, Origin::Restored);

    for (found, origin) in [([1; 32], Origin::Kept), ([2; 32], Origin::New)] {
        let (master, _) = tokio::join!(
            api_server.master("lb-svc-system", Some(&known)),
            answer(&mut handle, StatusCode::OK, master_of(&found))
        );
        let (master, said) = master.unwrap();
        assert_eq!((master.bytes(), said), (&found[..], origin), "what is there counts");
    }
}

#[tokio::test]
async fn r15_adopted_claim_is_to_be_probed_again() {
    let (api_server, mut handle) = api_server();
    let claim = ClaimId { name: "kept".into(), uid: "ip-1".into(), resource_version: "7".into() };
    let owner = owner();
    let (_, asked) = tokio::join!(
        api_server.adopt_claim(&claim, &owner),
        answer(&mut handle, StatusCode::CONFLICT, refusal(409, "Conflict"))
    );
    assert!(asked.line.starts_with("PATCH /apis/kubeovn.io/v1/ips/kept?"), "{}", asked.line);
    assert_eq!(asked.body["spec"], json!({ "serviceUid": "uid-1", "probed": false }));
    assert_eq!(asked.body["metadata"], json!({ "uid": "ip-1", "resourceVersion": "7" }));
}

#[tokio::test]
async fn budget_is_posted_applied_and_deleted() {
    let (api_server, mut handle) = api_server();
    let (gateway, wanted) = (gateway(), manifests::budget(&ID, &gateway()));
    let answered = json!({ "metadata": { "name": "lb-svc-web" } });
    let (made, asked) = tokio::join!(
        api_server.write_budget(&gateway, &wanted, None),
        answer(&mut handle, StatusCode::CREATED, answered.clone())
    );
    assert!(matches!(made.unwrap(), Written::Ours(_)));
    let path = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    assert_eq!(asked.line, format!("POST {path}?&fieldManager=lb-svc-controller"));
    assert_eq!(asked.body["spec"]["maxUnavailable"], 1);

    let known = child("b-1", json!({}));
    let (made, asked) = tokio::join!(
        api_server.write_budget(&gateway, &wanted, Some(&known)),
        answer(&mut handle, StatusCode::OK, answered)
    );
    assert!(matches!(made.unwrap(), Written::Ours(_)));
    assert!(asked.line.starts_with(&format!("PATCH {path}/lb-svc-web?")), "{}", asked.line);
    assert_eq!(asked.body["metadata"]["uid"], "b-1", "not another of its name");

    let (done, asked) = tokio::join!(
        api_server.delete_budget(&gateway, "b-1", "6"),
        answer(&mut handle, StatusCode::NOT_FOUND, refusal(404, "NotFound"))
    );
    done.expect("gone is as good as deleted");
    assert_eq!(asked.line, format!("DELETE {path}/lb-svc-web?"));
    assert_eq!(asked.body["preconditions"], json!({ "uid": "b-1", "resourceVersion": "6" }));
}

/// Answers the watches: with the objects that `objects` has by path, page by page;
/// with an empty list for others, and for gateways' objects; that it is forbidden, where `forbids` says so;
/// with nothing for a watch. Returns the requests for lists, once there has been
/// none for `pause`.
async fn serve_lists(
    handle: &mut Handle,
    objects: &[(&str, Vec<Value>)],
    mut forbids: impl FnMut(&str) -> bool,
    pause: Duration,
) -> Vec<String> {
    let mut handle = pin!(handle);
    let (mut asked, mut open) = (Vec::new(), Vec::new());
    while let Ok(Some((request, send))) = tokio::time::timeout(pause, handle.next_request()).await {
        let (path, query) = (request.uri().path(), request.uri().query().unwrap_or_default());
        let value = |name: &str| {
            let part = query.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
            part.and_then(|part| part.parse::<usize>().ok())
        };
        let respond = |status, body: Value| {
            Response::builder().status(status).body(Body::from(body.to_string().into_bytes())).unwrap()
        };
        if query.contains("watch=true") {
            match value("timeoutSeconds") {
                Some(1) => send.send_response(Response::new(Body::empty())),
                _ => open.push(send),
            }
            continue;
        }
        asked.push(format!("{path} {}", value("limit").unwrap()));
        if forbids(path) {
            send.send_response(respond(403, refusal(403, "Forbidden")));
            continue;
        }
        let of_gateways = query.contains("managed-by");
        let found = objects.iter().find(|(of, _)| *of == path && !of_gateways);
        let items = found.map(|(_, items)| items.as_slice()).unwrap_or_default();
        let begin = value("continue").unwrap_or(0);
        let end = items.len().min(begin + value("limit").unwrap());
        let next = if end < items.len() { end.to_string() } else { String::new() };
        let metadata = json!({ "resourceVersion": "1", "continue": next });
        send.send_response(respond(200, json!({ "metadata": metadata, "items": items[begin..end] })));
    }
    asked
}

const SOON: Duration = Duration::from_millis(500);

fn watched() -> (Client, Handle, Arc<Mutex<Index>>) {
    let (service, handle) = mock::pair::<Request<Body>, Response<Body>>();
    (Client::new(Bounds.layer(service), "default"), handle, Arc::new(Mutex::new(Index::default())))
}

#[tokio::test]
async fn r3_the_largest_objects_are_listed_a_few_at_a_time() {
    let (client, mut handle, index) = watched();
    let named = |n: usize| {
        let mut service = serde_json::to_value(direct_service()).unwrap();
        service["metadata"]["name"] = format!("s{n}").into();
        // As JSON six bytes each, of which etcd holds one.
        service["metadata"]["annotations"]["any"] = "\u{1}".repeat(256 * 1024).into();
        service
    };
    let (queue, _requests) = queue::queue();
    let synced = watch::start(&client, &index, &queue, None);
    let services: Vec<Value> = (0..12).map(named).collect();
    let asked = serve_lists(&mut handle, &[("/api/v1/services", services)], |_| false, SOON).await;
    assert!(synced.iter().all(|synced| *synced.borrow()));
    assert_eq!(index.lock().unwrap().known_services().len(), 12);
    let pages: Vec<&str> = asked.iter().filter_map(|asked| asked.strip_prefix("/api/v1/services ")).collect();
    assert_eq!(pages[..5], ["100", "50", "25", "12", "6"]);
    assert!(pages[5..].iter().all(|page| *page == "6") && pages.len() == 4 + 2, "{pages:?}");
}

#[tokio::test]
async fn r3_an_answer_that_is_too_large_says_what_was_asked() {
    let (client, mut handle, _) = watched();
    let api_server = ApiServer::new(client, "controller-1".into());
    let mut huge = claim_of("uid-1");
    huge["metadata"]["annotations"] = json!({ "any": "x".repeat(11 << 20) });
    let claim = ClaimId { name: "c".into(), uid: "c-1".into(), resource_version: "5".into() };
    let (written, _) =
        tokio::join!(api_server.set_retain(&claim, true), answer(&mut handle, StatusCode::OK, huge));
    let error = written.unwrap_err().to_string();
    assert!(error.contains("PATCH /apis/kubeovn.io/v1/ips/c is longer than 10 MiB"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn r36_forbidden_watch_is_wide_again_once_it_is_allowed() {
    let (client, mut handle, index) = watched();
    *index.lock().unwrap() = Index::new(Some("gateways".into()));
    let (queue, mut requests) = queue::queue();
    let synced = watch::start(&client, &index, &queue, Some("gateways"));
    let claims = [("/apis/kubeovn.io/v1/ips", vec![claim_of("uid-1")])];
    // An API server that starts, and one that goes on to forbid one kind.
    let wide = ["/api/v1/configmaps", "/apis/apps/v1/deployments"];
    let asked = serve_lists(&mut handle, &claims, |path| wide.contains(&path), SOON).await;
    assert!(synced.iter().all(|synced| *synced.borrow()));
    let of = |asked: &[String], path: &str| {
        asked.iter().filter(|asked| asked.split(' ').next() == Some(path)).count()
    };
    assert_eq!(of(&asked, "/api/v1/namespaces/gateways/configmaps"), 1);
    assert_eq!(of(&asked, "/api/v1/namespaces/gateways/pods"), 0, "each watch by itself");
    let gateway = gateway_of(&owner().service);
    let sees = |index: &Arc<Mutex<Index>>| {
        index.lock().unwrap().observe(&gateway, Instant::now()).gateway.is_visible
    };
    assert!(!sees(&index));

    let mut tries = 0;
    let forbids = |path: &str| {
        tries += usize::from(path == wide[0]);
        path == wide[0] && tries <= 2
    };
    let asked = serve_lists(&mut handle, &claims, forbids, Duration::from_secs(90)).await;
    assert_eq!(asked.iter().filter(|asked| *asked == "/apis/apps/v1/deployments 1").count(), 1);
    assert_eq!(asked.iter().filter(|asked| *asked == "/apis/apps/v1/deployments 100").count(), 1);
    assert_eq!(asked.iter().filter(|asked| *asked == "/api/v1/configmaps 1").count(), 3);
    assert_eq!(asked.iter().filter(|asked| *asked == "/api/v1/configmaps 100").count(), 1);
    assert!(sees(&index));
    let mut keys = Vec::new();
    while let Ok(request) = requests.try_recv() {
        keys.push(request.key);
    }
    assert_eq!(keys.last(), Some(&Key::Gateway(gateway)), "its gateway can be seen now");
}

#[tokio::test]
async fn r49_condition_that_others_own_too_is_removed() {
    let (api_server, mut handle) = api_server();
    let service = model::Service { id: owner(), ..service() };
    let own: [IpAddr; 1] = ["172.18.0.11".parse().unwrap()];
    let condition = |kind: &str| json!({ "type": kind, "status": "True", "reason": "Any", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z" });
    let answered = |conditions: &[&str], addresses: &[&str]| {
        let ingress = addresses.iter().map(|ip| json!({ "ip": ip })).collect::<Value>();
        let conditions = conditions.iter().map(|kind| condition(kind)).collect::<Value>();
        json!({
            "metadata": { "namespace": "default", "name": "web", "uid": "uid-1", "resourceVersion": "8" },
            "status": { "loadBalancer": { "ingress": ingress }, "conditions": conditions },
        })
    };
    let ours = "lb-svc.kubeovn.io/GatewayReady";
    let talk = async |handle: &mut Handle, first: Value| {
        let applied = answer(handle, StatusCode::OK, first).await;
        assert_eq!(applied.kind, "application/apply-patch+yaml");
        answer(handle, StatusCode::OK, answered(&["example.com/theirs"], &[])).await
    };
    let first = answered(&[ours, "example.com/theirs"], &["172.18.0.11"]);
    let (done, asked) =
        tokio::join!(api_server.set_status(&service, &[], &[], &own, false), talk(&mut handle, first));
    assert!(done.unwrap().is_some());
    assert!(
        asked.line.starts_with("PATCH /api/v1/namespaces/default/services/web/status?"),
        "{}",
        asked.line
    );
    assert_eq!(asked.kind, "application/strategic-merge-patch+json");
    assert_eq!(
        asked.body,
        json!({
            "metadata": { "uid": "uid-1", "resourceVersion": "8" },
            "status": {
                "conditions": [{ "$patch": "delete", "type": ours }],
                "loadBalancer": { "ingress": null },
            },
        })
    );

    // What is others' stays, and what is written stays.
    for (shown, wanted) in [(&["example.com/theirs"], false), (&[ours], true)] {
        let conditions = model::Condition {
            kind: ours.into(),
            status: true,
            reason: "Any".into(),
            message: String::new(),
        };
        let conditions: Vec<_> = Some(conditions).filter(|_| wanted).into_iter().collect();
        let answered = answered(shown, &["172.18.0.99"]);
        let (done, _) = tokio::join!(
            api_server.set_status(&service, &[], &conditions, &own, false),
            answer(&mut handle, StatusCode::OK, answered)
        );
        assert!(done.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn r26_pods_are_watched_for_gates_once_a_service_is_served_directly() {
    let all_pods = |asked: &[String]| asked.iter().filter(|asked| *asked == "/api/v1/pods 100").count() - 1;
    let none: [(&str, Vec<Value>); 0] = [];
    let (client, mut handle, index) = watched();
    let (queue, _requests) = queue::queue();
    let synced = watch::start(&client, &index, &queue, None);
    let asked = serve_lists(&mut handle, &none, |_| false, SOON).await;
    assert!(synced.iter().all(|synced| *synced.borrow()), "nothing waits for it");
    assert_eq!(all_pods(&asked), 0, "but gateways' own");
    index.lock().unwrap().set_service(owner().service, read::service(&direct_service()));
    let asked = serve_lists(&mut handle, &none, |_| false, SOON).await;
    assert_eq!(asked, ["/api/v1/pods 100"]);

    // A pod that has a gate that no Service asks for waits as well.
    let (client, mut handle, index) = watched();
    let _synced = watch::start(&client, &index, &queue, None);
    let asked = serve_lists(&mut handle, &none, |_| false, Duration::from_secs(90)).await;
    assert_eq!(all_pods(&asked), 1);

    // Where one is served directly at the start, all wait for it.
    let gated = json!({
        "metadata": {
            "namespace": "default", "name": "web-0", "uid": "p-1", "resourceVersion": "1",
            "deletionTimestamp": "no time", "managedFields": [{ "time": 7 }],
        },
        "spec": { "readinessGates": [{ "conditionType": names::READINESS_GATE }], "volumes": "odd" },
        "status": { "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "odd" }] },
    });
    let services = vec![serde_json::to_value(direct_service()).unwrap()];
    let (client, mut handle, index) = watched();
    let synced = watch::start(&client, &index, &queue, None);
    let objects = [("/api/v1/services", services), ("/api/v1/pods", vec![gated])];
    let asked = serve_lists(&mut handle, &objects, |_| false, SOON).await;
    assert!(synced.iter().all(|synced| *synced.borrow()));
    assert_eq!(all_pods(&asked), 1);
    assert_eq!(index.lock().unwrap().known_backends(), [("default".to_owned(), "web-0".to_owned())]);
}
