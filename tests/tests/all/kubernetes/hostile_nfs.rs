//! NFS volumes of pods whose servers are hostile.

use std::time::{Duration, Instant};

use anyhow::ensure;
use lab::{HostOptions, Root};

use crate::kubernetes::kubelet::{driver, install_there};
use crate::support::{VmSpc, until, with_lab};

/// Plays a server that answers empty calls only. It prints the first other call.
const SERVER: &str = r#"
import socket, struct, threading
def serve(client):
    while True:
        head = client.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return
        data = client.recv(struct.unpack('>I', head)[0] & 0x7fffffff, socket.MSG_WAITALL)
        if struct.unpack('>I', data[20:24])[0] != 0:
            print('asked', flush=True)
            continue
        client.sendall(struct.pack('>I', 0x80000018) + data[:4] + struct.pack('>IIIII', 1, 0, 0, 0, 0))
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('0.0.0.0', 2049))
listener.listen(8)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

#[test]
#[ignore = "long: a virtual machine and an NFS server of its own"]
fn a_server_of_a_pod_does_not_prevent_other_nfs_mounts() {
    with_lab(|lab| {
        let server = lab.host(HostOptions {
            root: Root::Shares,
            ..HostOptions::default()
        })?;
        server.write("/srv/server.py", SERVER.as_bytes())?;
        let mut log = server.spawn(&["python3", "/srv/server.py"])?;
        let good = lab.knfsd()?;
        let spc = VmSpc::privileged(lab)?;
        install_there(&spc)?;
        let host = &spc.host;
        let target = "/var/lib/kubelet/pods/1-0/volumes/spc~spc/data";
        let json = format!(
            r#"{{"kubernetes.io/fsType":"nfs","source":"{}:/x","options":"vers=4.2","timeout":"3600"}}"#,
            server.address()
        );
        let call = format!(
            "mkdir -p /mnt/a {target}; setsid {} mount {target} '{json}' >/tmp/pod 2>&1 </dev/null &",
            driver()
        );
        host.sh(&call)?.ok()?;
        until("the pod's server is asked", || {
            Ok(!log.so_far()?.0.is_empty())
        })?;
        let source = format!("{}:/data", good.vm().address());
        let options = ["--timeout", "60", "-t", "nfs", "-o", "vers=4.2"];
        let mount = ["runc", "exec", "spc", "spc", "mount"];
        let mount = [&mount[..], &options, &[&source, "/mnt/a"]].concat();
        let began = Instant::now();
        let mounted = host.command(&mount).limit(Duration::from_secs(120)).run()?;
        let took = began.elapsed();
        let pod = host.sh("cat /tmp/pod; grep -h mutex /proc/[0-9]*/stack")?;
        ensure!(
            mounted.success() && took < Duration::from_secs(40),
            "{took:?} {mounted} {pod}"
        );
        Ok(())
    });
}
