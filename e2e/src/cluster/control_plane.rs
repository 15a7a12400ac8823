//! How the components of the control plane are started.

use crate::{
    machine::{API_SERVER_PORT, ETCD_PORTS},
    processes::Spec,
    programs::tools_dir,
    state_dir::StateDir,
};

/// A component of the one Go program that has all of them.
pub(super) fn component(name: &str) -> Spec {
    Spec::new(name, tools_dir().join("controlplane")).arg(name)
}

pub(super) fn etcd(state_dir: &StateDir) -> Spec {
    let [clients, peers] = ETCD_PORTS.map(|port| format!("http://127.0.0.1:{port}"));
    component("etcd")
        .arg(format!("--data-dir={}", state_dir.etcd().display()))
        .arg(format!("--listen-client-urls={clients}"))
        .arg(format!("--advertise-client-urls={clients}"))
        .arg(format!("--listen-peer-urls={peers}"))
        .arg(format!("--initial-advertise-peer-urls={peers}"))
        .arg(format!("--initial-cluster=default={peers}"))
        .args(["--unsafe-no-fsync", "--logger=zap", "--log-level=warn"])
}

pub(super) fn api_server(state_dir: &StateDir) -> Spec {
    let pki = |file: &str| state_dir.pki().join(file).display().to_string();
    component("kube-apiserver")
        .arg(format!("--etcd-servers=http://127.0.0.1:{}", ETCD_PORTS[0]))
        .arg(format!("--secure-port={API_SERVER_PORT}"))
        .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
        .arg(format!("--tls-cert-file={}", pki("apiserver.crt")))
        .arg(format!("--tls-private-key-file={}", pki("apiserver.key")))
        .arg(format!("--client-ca-file={}", pki("ca.crt")))
        .arg(format!("--service-account-key-file={}", pki("sa.pub")))
        .arg(format!(
            "--service-account-signing-key-file={}",
            pki("sa.key")
        ))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg("--service-cluster-ip-range=10.96.0.0/16")
        .args([
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
        ])
        .arg(format!("--kubelet-client-certificate={}", pki("admin.crt")))
        .arg(format!("--kubelet-client-key={}", pki("admin.key")))
        .args(["--allow-privileged=true", "--endpoint-reconciler-type=none"])
        .arg("--kubelet-preferred-address-types=InternalIP")
}

pub(super) fn controllers(state_dir: &StateDir) -> Spec {
    let pki = state_dir.pki();
    component("kube-controller-manager")
        .arg(format!(
            "--kubeconfig={}",
            state_dir.kubeconfig("controllers").display()
        ))
        .arg(format!(
            "--service-account-private-key-file={}",
            pki.join("sa.key").display()
        ))
        .arg(format!("--root-ca-file={}", pki.join("ca.crt").display()))
        .args([
            "--use-service-account-credentials",
            "--leader-elect=false",
            "--secure-port=0",
        ])
        .args([
            "--concurrent-deployment-syncs=5",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        ])
}

pub(super) fn scheduler(state_dir: &StateDir) -> Spec {
    component("kube-scheduler")
        .arg(format!(
            "--kubeconfig={}",
            state_dir.kubeconfig("scheduler").display()
        ))
        .args(["--leader-elect=false", "--secure-port=0"])
}
