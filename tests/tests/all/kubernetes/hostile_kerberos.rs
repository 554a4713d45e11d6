//! Servers of pods that ask for Kerberos, on nodes that have it.

use anyhow::ensure;

use crate::kubernetes::kubelet::{Kubelet, Pod, Volume, install_there};
use crate::support::{VmSpc, with_lab};

/// Plays rpc.gssd(8) on the node: notes what the kernel asks for, and refuses it.
const GSSD: &str = r#"#!/bin/sh
for dummy in /run/pipes/gssd/*/gssd; do exec 3<>"$dummy"; done
serve() {
    exec 4<>"$1"
    while [ -e "$1" ]; do
        dd bs=4096 count=1 <&4 2>/dev/null >"/tmp/read$2"
        cat "/tmp/read$2" >>/tmp/asked
        printf '\000\000\000\000\000\000\000\000\000\000\000\000\363\377\377\377' >&4
    done
}
while :; do
    for pipe in /run/pipes/nfs/*/gssd; do
        name=$(echo "$pipe" | tr / _)
        [ -e "$pipe" ] && [ ! -e "/tmp/served$name" ] && { : >"/tmp/served$name"; serve "$pipe" "$name" & }
    done
    sleep 0.05
done
"#;

#[test]
#[ignore = "long: a virtual machine and an NFS server of its own"]
fn a_server_of_a_pod_gets_no_kerberos_ticket_of_the_node_for_data() {
    with_lab(|lab| {
        let server = lab.knfsd()?;
        let export = "modprobe rpcsec_gss_krb5; mkdir -p /srv/nfs/guarded
            echo '/guarded 192.0.2.0/24(rw,no_root_squash,no_subtree_check,fsid=9,sec=krb5)' >>/etc/exports
            exportfs -ra";
        server.vm().sh(export)?.ok()?;
        let spc = VmSpc::privileged(lab)?;
        install_there(&spc)?;
        let (host, kubelet) = (&spc.host, Kubelet::start(&spc.host)?);
        host.write("/tmp/gssd", GSSD.as_bytes())?;
        let start =
            "modprobe sunrpc; modprobe auth_rpcgss; modprobe rpcsec_gss_krb5; mkdir -p /run/pipes
            mount -t rpc_pipefs pipes /run/pipes
            chmod 755 /tmp/gssd; setsid /tmp/gssd >/dev/null 2>&1 </dev/null &";
        host.sh(start)?.ok()?;
        let source = format!("{}:/guarded", server.vm().address());
        let mut asked = Vec::new();
        for (number, options) in ["vers=4.2,sec=sys", "vers=4.2"].into_iter().enumerate() {
            let given = [
                ("source", &*source),
                ("options", options),
                ("timeout", "20"),
            ];
            let pod = Pod::new(&format!("1-{number}"), Volume::new("nfs", &given));
            ensure!(kubelet.set_up(&pod).is_err());
            let count = "grep mech=krb5 /tmp/asked | grep -vc service=; : >/tmp/asked";
            asked.push(host.sh(count)?.text());
        }
        // The kernel asks for the node's own lease in any case, and for data only without sec=sys.
        ensure!(asked[0] == asked[1], "{asked:?}");
        Ok(())
    });
}
