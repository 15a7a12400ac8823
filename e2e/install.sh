#!/bin/sh
# Installs what the test cluster needs and this machine lacks: Debian packages, the control plane binary, containerd.
# Does nothing, in well under a second, when all of it is there. Needs root, and the network only when something is missing.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
tools=${TESSERA_E2E_TOOLS:-$here/../target/e2e-tools}
kubernetes=1.34.4
containerd=2.2.9
mkdir -p "$tools"
tools=$(cd "$tools" && pwd)

need() { # FILE PACKAGE: the package goes on the list when its file is missing
    [ -e "$1" ] || missing="$missing $2"
}
missing=
need /usr/sbin/runc runc
need /usr/lib/cni/bridge containernetworking-plugins
need /bin/busybox busybox-static
need /usr/sbin/iptables iptables
need "$(ls /usr/lib/*/faketime/libfaketimeMT.so.1 2>/dev/null | head -n 1)" libfaketime
command -v ip >/dev/null || missing="$missing iproute2"
PATH=$PATH:/usr/local/go/bin
command -v go >/dev/null || missing="$missing golang"
# The dynamic busybox of the package "busybox" cannot run in an image without a C library.
dpkg-query -W -f='${Status}' busybox-static 2>/dev/null | grep -q 'ok installed' || need /nonexistent busybox-static
if [ -n "$missing" ]; then
    echo "installing Debian packages:$missing"
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing
fi

version=k8s.io/component-base/version
flags="-s -w -X $version.gitVersion=v$kubernetes -X $version.gitMajor=1 -X $version.gitMinor=34"
stamp=$({ echo "$flags"; cat "$here/controlplane/main.go" "$here/controlplane/go.mod"; } | sha256sum | cut -d' ' -f1)
if [ "$(cat "$tools/controlplane.stamp" 2>/dev/null)" != "$stamp" ] || [ ! -x "$tools/controlplane" ]; then
    echo "building the control plane (Kubernetes $kubernetes): minutes the first time"
    (cd "$here/controlplane" && go build -trimpath -buildvcs=false -o "$tools/controlplane" -ldflags "$flags" .)
    echo "$stamp" >"$tools/controlplane.stamp"
fi

for program in containerd containerd-shim-runc-v2 ctr; do
    if [ "$(cat "$tools/$program.stamp" 2>/dev/null)" != "$containerd" ] || [ ! -x "$tools/$program" ]; then
        echo "building $program $containerd"
        GOBIN=$tools GOFLAGS=-buildvcs=false go install -trimpath "github.com/containerd/containerd/v2/cmd/$program@v$containerd"
        echo "$containerd" >"$tools/$program.stamp"
    fi
done
