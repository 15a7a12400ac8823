//! Keys, certificates and kubeconfigs of the test cluster.

use std::{fs, path::Path};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use crate::{
    error::{AtPath, Error},
    machine::{API_SERVER_PORT, NODE_ADDRESS},
    state_dir::StateDir,
};

/// Who gets a certificate: file name, common name (the user), organisation (the group).
const USERS: [(&str, &str, &str); 4] = [
    ("admin", "admin", "system:masters"),
    ("controllers", "system:kube-controller-manager", "none"),
    ("scheduler", "system:kube-scheduler", "none"),
    ("apiserver", "kube-apiserver", "none"),
];

/// Makes all of it in `pki/`: `ca.crt`, `sa.key` and `sa.pub`, and for each user `.crt`, `.key` and `.conf`.
pub fn make(state_dir: &StateDir, node: &str) -> Result<(), Error> {
    let dir = state_dir.pki();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params
        .distinguished_name
        .push(DnType::CommonName, "tessera-e2e");
    let key = KeyPair::generate()?;
    let ca = params.self_signed(&key)?;
    write(&dir.join("ca.crt"), &ca.pem())?;
    let issuer = Issuer::new(params, key);
    let accounts = KeyPair::generate()?;
    write(&dir.join("sa.key"), &accounts.serialize_pem())?;
    write(&dir.join("sa.pub"), &accounts.public_key_pem())?;
    let kubelet = format!("system:node:{node}");
    for (name, user, group) in
        USERS
            .into_iter()
            .chain([("kubelet", kubelet.as_str(), "system:nodes")])
    {
        let names = [
            "localhost",
            "kubernetes.default.svc",
            node,
            "127.0.0.1",
            NODE_ADDRESS,
            "10.96.0.1",
        ];
        let mut params = CertificateParams::new(names.map(str::to_owned))?;
        let subject = &mut params.distinguished_name;
        subject.push(DnType::CommonName, user);
        subject.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        let (crt, pem) = (
            dir.join(format!("{name}.crt")),
            dir.join(format!("{name}.key")),
        );
        write(&crt, &certificate.pem())?;
        write(&pem, &key.serialize_pem())?;
        let user = json!({ "client-certificate": crt, "client-key": pem });
        kubeconfig(state_dir, name, &user)?;
    }
    Ok(())
}

/// Writes the kubeconfig of somebody who proves who they are by `user`.
pub(crate) fn kubeconfig(
    state_dir: &StateDir,
    name: &str,
    user: &serde_json::Value,
) -> Result<(), Error> {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": name,
        "clusters": [{ "name": "e2e", "cluster": {
            "server": format!("https://127.0.0.1:{API_SERVER_PORT}"),
            "certificate-authority": state_dir.pki().join("ca.crt") } }],
        "users": [{ "name": name, "user": user }],
        "contexts": [{ "name": name, "context": { "cluster": "e2e", "user": name } }],
    });
    write(
        &state_dir.kubeconfig(name),
        &serde_json::to_string_pretty(&config)?,
    )
}

fn write(path: &Path, text: &str) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, text).at(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).at(path)
}
