# Starts kubelet. $1 is the name of the node, $2 its address. Its log says what it mounts.
etc=/etc/kubernetes
kubelet --v=1 --kubeconfig=$etc/kubelet.conf --config=$etc/kubelet.yaml \
    --hostname-override=$1 --node-ip=$2 \
    --container-runtime=remote --container-runtime-endpoint=unix:///run/containerd/containerd.sock \
    >>/var/log/kubernetes/kubelet.log 2>&1 &
echo $! >/run/kubelet.pid
