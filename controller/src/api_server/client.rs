//! The client of the API server: time limits, parameters, errors.

use std::future::Future;
use std::time::Duration;

use kube::Client;
use kube::api::{Api, DeleteParams, PatchParams, PostParams, Preconditions};
use lb_svc_crds::names;

use crate::panics::Panic;

/// The name under which the controller owns fields it writes.
pub const MANAGER: &str = "lb-svc-controller";
/// No request to the API server waits longer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server said no, or could not be reached.
    #[error("{}", said(.0))]
    Api(#[source] Box<kube::Error>),
    /// It did not answer.
    #[error("the API server did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// Others took every address that was tried.
    #[error("every address tried was taken in the meantime")]
    Contended,
    /// What was to be written needs a Service that is gone.
    #[error("the Service is gone")]
    ServiceGone,
    /// An object that is not ours has a name that the gateway needs.
    #[error("the name is taken by an object that lb-svc did not make")]
    Taken,
    /// What was to be written is not what the API takes: a defect here.
    #[error("rendering: {0}")]
    Render(#[from] serde_json::Error),
    /// There is nothing to derive keys from.
    #[error(
        "the Secret {namespace}/{} has no {} of 32 bytes: delete it",
        names::MASTER_SECRET,
        names::MASTER_KEY
    )]
    Master {
        /// Its namespace.
        namespace: String,
    },
    /// The Secret with the keys that configurations are signed with has no keys.
    #[error(
        "Secret {namespace}/{} holds no seed of 32 bytes under {:?}, or another one of another length: correct it, or delete it to have a new key made and every gateway replaced",
        names::SIGNING_SECRET,
        names::SIGNING_KEY
    )]
    SigningKeys {
        /// Its namespace.
        namespace: String,
    },
    /// The system gives no randomness.
    #[error("no randomness for a key: {0}")]
    Random(#[from] std::io::Error),
    /// A defect here, which cost one run.
    #[error(transparent)]
    Internal(#[from] Panic),
}

/// The API server's own words, without the rest of its answer.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

impl Error {
    /// One word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api(error) => match &**error {
                kube::Error::Api(status) if status.code == 409 => "conflict",
                kube::Error::Api(status) if status.code == 403 => "forbidden",
                kube::Error::Api(_) => "refused",
                _ => "transport",
            },
            Self::Taken | Self::ServiceGone => "conflict",
            Self::Timeout => "timeout",
            Self::Contended => "contended",
            Self::Render(_) => "render",
            Self::Master { .. } | Self::SigningKeys { .. } | Self::Random(_) => "key",
            Self::Internal(_) => "internal",
        }
    }

    /// Whether someone else was quicker; what is seen is out of date.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409) || matches!(self, Self::Taken | Self::ServiceGone)
    }

    /// Whether the API server understood and will not have it: a quota, an
    /// admission policy, missing rights, no such namespace. Trying again helps
    /// when that changes.
    pub fn is_refusal(&self) -> bool {
        matches!(self.code(), Some(400 | 403 | 404 | 422)) || matches!(self, Self::Master { .. })
    }

    /// Whether what was to be written is not valid, for the object as it is.
    pub fn is_invalid(&self) -> bool {
        self.code() == Some(422)
    }

    fn code(&self) -> Option<u16> {
        match self {
            Self::Api(error) => match &**error {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            _ => None,
        }
    }
}

impl From<kube::Error> for Error {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// The API server, as the controller reads from it and writes to it: see
/// [`read`](super::read) and [`write`](super::write).
#[derive(Clone)]
pub struct ApiServer {
    pub(super) client: Client,
    pub(super) instance: String,
}

pub(super) async fn timed<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    Ok(tokio::time::timeout(TIMEOUT, call).await.map_err(|_| Error::Timeout)??)
}

/// `Ok(None)` instead of an error if the object is gone.
pub(super) async fn timed_opt<T>(call: impl Future<Output = kube::Result<T>>) -> Result<Option<T>, Error> {
    match timed(call).await {
        Err(error) if error.code() == Some(404) => Ok(None),
        other => other.map(Some),
    }
}

pub(super) fn post() -> PostParams {
    PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() }
}

pub(super) fn apply() -> PatchParams {
    PatchParams::apply(MANAGER).force()
}

pub(super) fn merge() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

pub(super) fn exactly(uid: &str, resource_version: &str) -> DeleteParams {
    DeleteParams::default().preconditions(Preconditions {
        uid: Some(uid.to_owned()),
        resource_version: Some(resource_version.to_owned()),
    })
}

impl ApiServer {
    /// A client that signs its Events as `instance`.
    pub fn new(client: Client, instance: String) -> Self {
        Self { client, instance }
    }

    pub(super) fn namespaced<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }
}
