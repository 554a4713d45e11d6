# Starts a Kubernetes cluster on this host: etcd, the control plane, containerd, kubelet.
# $1 is the name of the node, $2 its address.
set -eu
etc=/etc/kubernetes logs=/var/log/kubernetes containerd=unix:///run/containerd/containerd.sock
mkdir -p $etc/pki $logs /etc/cni/net.d /var/lib/kubelet

# Runs a program in the background, with its log in a file.
start() { "$@" >$logs/${1##*/}.log 2>&1 & pid=$! name=$1; }
# Waits for a condition for as long as the program of the last `start` runs.
wait_for() {
    until "$@" >/dev/null 2>&1; do
        kill -0 $pid 2>/dev/null || { grep '^[EF][0-9]' $logs/$name.log | tail -n 20 >&2; exit 1; }
        sleep 0.1
    done
}

# kubelet sets kernel parameters that the machine shares with this host. It gets files instead.
mkdir /run/sysctl
for parameter in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    path=${parameter%=*} file=/run/sysctl/$(echo ${parameter%=*} | tr / .)
    echo ${parameter#*=} >$file
    mount --bind $file /proc/sys/$path
done
# kubelet reads the kernel's log, and reaches its end at once.
ln -s /dev/null /dev/kmsg

# Each user's token is the user's name: nothing but the lab reaches this cluster.
cat >$etc/tokens <<TOKENS
admin,admin,1,system:masters
kubelet,system:node:$1,2,system:nodes
kube-controller-manager,system:kube-controller-manager,3
kube-scheduler,system:kube-scheduler,4
TOKENS
for user in admin kubelet kube-controller-manager kube-scheduler; do
    cat >$etc/$user.conf <<CONFIG
apiVersion: v1
kind: Config
clusters:
  - name: lab
    cluster: {server: "https://localhost:6443", certificate-authority: $etc/pki/apiserver.crt}
users:
  - name: $user
    user: {token: $user}
contexts:
  - name: lab
    context: {cluster: lab, user: $user}
current-context: lab
CONFIG
done
mkdir -p /root/.kube
cp $etc/admin.conf /root/.kube/config

start etcd --data-dir=/var/lib/etcd
start containerd --config=$etc/containerd.toml
wait_for ctr version
for archive in $etc/images/*.tar; do
    ctr -n k8s.io images import $archive >/dev/null
done
# The name in the manifests.
ctr -n k8s.io images tag localhost/spc:latest registry.example.com/spc:0.1.0 >/dev/null
start kube-apiserver --etcd-servers=http://127.0.0.1:2379 --advertise-address=$2 \
    --cert-dir=$etc/pki --token-auth-file=$etc/tokens --authorization-mode=Node,RBAC \
    --enable-admission-plugins=NodeRestriction --allow-privileged \
    --service-cluster-ip-range=198.51.100.0/24 --service-account-issuer=https://localhost \
    --service-account-key-file=$etc/pki/apiserver.key \
    --service-account-signing-key-file=$etc/pki/apiserver.key
wait_for kubectl get --raw /readyz
start kube-controller-manager --kubeconfig=$etc/kube-controller-manager.conf --leader-elect=false \
    --use-service-account-credentials --service-account-private-key-file=$etc/pki/apiserver.key \
    --root-ca-file=$etc/pki/apiserver.crt --cert-dir=$etc/pki --pvclaimbinder-sync-period=1s
start kube-scheduler --kubeconfig=$etc/kube-scheduler.conf --leader-elect=false --cert-dir=$etc/pki
sh $etc/kubelet $1 $2
pid=$(cat /run/kubelet.pid) name=kubelet
wait_for kubectl wait --for=condition=Ready --timeout=60s node/$1
wait_for kubectl get serviceaccount default
