# shellcheck shell=bash
# etcd, API server, controller-manager and scheduler: plain processes in the network namespace of node 1.

API=https://172.18.0.2:6443
SERVICE_CIDR=10.96.0.0/16

start_etcd() {
  spawn etcd nsenter --net=/run/netns/lb-svc-n1 etcd --data-dir="$STATE/etcd" --unsafe-no-fsync \
    --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379
  await 20 etcd "etcd" in_net n1 curl -sf --max-time 2 http://127.0.0.1:2379/health
}

start_api_server() {
  spawn kube-apiserver nsenter --net=/run/netns/lb-svc-n1 kube-apiserver \
    --etcd-servers=http://127.0.0.1:2379 \
    --advertise-address=172.18.0.2 --service-cluster-ip-range="$SERVICE_CIDR" --allow-privileged \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction \
    --client-ca-file="$STATE/pki/ca.crt" \
    --tls-cert-file="$STATE/pki/apiserver.crt" --tls-private-key-file="$STATE/pki/apiserver.key" \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file="$STATE/pki/sa.pub" --service-account-signing-key-file="$STATE/pki/sa.key" \
    --kubelet-client-certificate="$STATE/pki/admin.crt" --kubelet-client-key="$STATE/pki/admin.key" \
    --kubelet-preferred-address-types=InternalIP `# nothing resolves the names of nodes` \
    --audit-policy-file="$HERE/manifests/audit-policy.yaml" --audit-log-path="$STATE/log/audit.log" --audit-log-maxsize=1000
  await 60 kube-apiserver "the API server" api_server_ready
}

api_server_ready() {
  in_net n1 curl -sf --max-time 2 --cacert "$STATE/pki/ca.crt" "$API/readyz" >/dev/null
}

start_controllers() {
  spawn kube-controller-manager nsenter --net=/run/netns/lb-svc-n1 kube-controller-manager \
    --kubeconfig="$STATE/pki/controller-manager.kubeconfig" --leader-elect=false --use-service-account-credentials \
    --kube-api-qps=200 --kube-api-burst=400 `# its own start is 40 controllers asking for tokens` \
    --service-account-private-key-file="$STATE/pki/sa.key" --root-ca-file="$STATE/pki/ca.crt"
  spawn kube-scheduler nsenter --net=/run/netns/lb-svc-n1 kube-scheduler \
    --kubeconfig="$STATE/pki/scheduler.kubeconfig" --leader-elect=false
}

add_objects() {
  kubectl_admin apply -f "$HERE/manifests/nad-crd.yaml" -f "$HERE/manifests/multus-rbac.yaml" >/dev/null
  kubectl_admin wait --for=condition=Established --timeout=30s \
    crd/network-attachment-definitions.k8s.cni.cncf.io >/dev/null
}

kubectl_admin() {
  KUBECACHEDIR=$STATE/kubectl-cache in_net n1 kubectl --kubeconfig "$STATE/kubeconfig" "$@"
}

# --- who is who ---

make_certificates() {
  local i
  cat >"$STATE/pki/openssl.cnf" <<END
[req]
distinguished_name = dn
[dn]
[ca]
basicConstraints = critical, CA:true
[leaf]
basicConstraints = critical, CA:false
END
  make_key "$STATE/pki/sa.key"
  openssl pkey -in "$STATE/pki/sa.key" -pubout -out "$STATE/pki/sa.pub"
  make_key "$STATE/pki/ca.key"
  certify ca /CN=lb-svc-ca ca

  issue apiserver /CN=kube-apiserver "IP:172.18.0.2,IP:127.0.0.1,IP:${SERVICE_CIDR%.*}.1,DNS:kubernetes.default.svc"
  issue admin /O=system:masters/CN=admin
  issue controller-manager /CN=system:kube-controller-manager
  issue scheduler /CN=system:kube-scheduler
  issue kube-proxy /CN=system:kube-proxy
  issue multus /CN=system:multus
  for i in $(seq "$(node_count)"); do issue "n$i" "/O=system:nodes/CN=system:node:n$i"; done
  ln -s pki/admin.kubeconfig "$STATE/kubeconfig"
}

issue() { # NAME SUBJECT [SUBJECT_ALT_NAME]: a key, a certificate and a kubeconfig
  make_key "$STATE/pki/$1.key"
  certify "$1" "$2" leaf -CA "$STATE/pki/ca.crt" -CAkey "$STATE/pki/ca.key" ${3:+-addext "subjectAltName=$3"}
  cat >"$STATE/pki/$1.kubeconfig" <<END
apiVersion: v1
kind: Config
current-context: lb-svc
contexts: [{name: lb-svc, context: {cluster: lb-svc, user: $1}}]
clusters:
  - name: lb-svc
    cluster: {server: "$API", certificate-authority-data: $(base64 -w0 "$STATE/pki/ca.crt")}
users:
  - name: $1
    user:
      client-certificate-data: $(base64 -w0 "$STATE/pki/$1.crt")
      client-key-data: $(base64 -w0 "$STATE/pki/$1.key")
END
}

make_key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

certify() { # NAME SUBJECT EXTENSIONS [ARGS...]
  openssl req -x509 -new -config "$STATE/pki/openssl.cnf" -key "$STATE/pki/$1.key" -subj "$2" -extensions "$3" \
    -days 365 -out "$STATE/pki/$1.crt" "${@:4}"
}
