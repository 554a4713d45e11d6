//! kubelet's mounter path: `MOUNTER mount …` in place of mount(8), and umount(8) when the pod has
//! gone.

use anyhow::{Context, Result, ensure};
use lab::{AnyHost, Root, VmOptions};

use crate::kubernetes::kubelet::{DRIVER, Kubelet, Pod, ROOT, Volume, install, install_there};
use crate::mount::nfs3_services::{BOTH, ensure_running, until_running};
use crate::support::{Spc, VmSpc, until, with_gluster, with_vm};

/// Directory of a pod for a volume of a plug-in inside kubelet.
fn own_directory(plugin: &str, pod: &str) -> String {
    format!("{ROOT}/pods/{pod}/volumes/kubernetes.io~{plugin}/data")
}

/// Plays kubelet's `doMount` with a mounter. The pod's event shows its output.
fn mounter<H: AnyHost>(host: &H, words: &[&str]) -> Result<lab::Output> {
    let script = r#""$@" 2>&1 | cat; "#;
    let shell = [
        "sh",
        "-o",
        "pipefail",
        "-c",
        script,
        "kubelet",
        "/var/lib/spc/mounter",
        "mount",
    ];
    host.run(&[&shell, words].concat())
}

#[test]
fn the_mounter_mounts_what_kubelets_glusterfs_asks_for() {
    with_gluster(|lab, cluster| {
        let spc = Spc::privileged(lab)?;
        install(&spc)?;
        let host = &spc.host;
        let target = own_directory("glusterfs", "1-2");
        let logs = format!("{ROOT}/plugins/kubernetes.io/glusterfs/data");
        host.sh(&format!("mkdir -p -m 0750 {target} {logs}"))?
            .ok()?;
        let [first, second] = [0, 1].map(|node| cluster.nodes()[node].host().address().to_string());
        let options = format!(
            "auto_unmount,backup-volfile-servers={second}:{first},log-file={logs}/pod-glusterfs.log,log-level=ERROR"
        );
        let words = [
            "-t",
            "glusterfs",
            "-o",
            &options,
            &format!("{first}:vol"),
            &target,
        ];
        for _ in 0..2 {
            mounter(host, &words)?.ok()?;
        }
        ensure!(spc.on(&target)?.len() == 1 && spc.on(&target)?[0].fstype == "fuse.glusterfs");
        host.write(format!("{target}/from-a-pod"), b"written")?;
        let copy = cluster.nodes()[0]
            .host()
            .read(cluster.nodes()[0].brick("vol").join("from-a-pod"))?;
        ensure!(copy == b"written");
        // kubelet runs only umount(8) when the pod ends.
        host.run(&["umount", &target])?.ok()?;
        until("the mount is forgotten", || Ok(spc.is_clean().is_ok()))?;

        // The error is in the output, and in the file where kubelet looks for it.
        let words = [
            "-t",
            "glusterfs",
            "-o",
            &options,
            &format!("{first}:nosuch"),
            &target,
        ];
        let failed = mounter(host, &words)?;
        ensure!(
            !failed.success() && failed.text().contains("failed to fetch volume file"),
            "{failed}"
        );
        let log = host.read(format!("{logs}/pod-glusterfs.log"))?;
        let log = String::from_utf8_lossy(&log);
        ensure!(log.contains("failed to fetch volume file"), "{log}");
        spc.is_clean()
    });
}

#[test]
fn no_link_below_kubelets_directory_is_followed() {
    with_gluster(|lab, cluster| {
        let spc = Spc::privileged(lab)?;
        install(&spc)?;
        let host = &spc.host;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        let target = own_directory("glusterfs", "1-2");
        // Root made the link, which would be enough anywhere else.
        host.sh(&format!(
            "mkdir -p {} /srv/elsewhere && ln -s /srv/elsewhere {target}",
            target.trim_end_matches("/data")
        ))?
        .ok()?;
        let refused = mounter(host, &["-t", "glusterfs", &source, &target])?;
        ensure!(
            refused.text().contains("symbolic link") && !refused.success(),
            "{refused}"
        );
        let kubelet = Kubelet::start(host)?;
        let pod = Pod::new("3-4", Volume::new("glusterfs", &[("source", &source)]));
        host.sh(&format!("mkdir -p {ROOT}/pods/3-4/volumes && ln -s /srv/elsewhere {ROOT}/pods/3-4/volumes/{DRIVER} && mkdir /srv/elsewhere/data"))?.ok()?;
        let error = kubelet.call(&["mount", &pod.directory(), &kubelet.options(&pod)]);
        ensure!(error.is_err_and(|error| error.to_string().contains("symbolic link")));
        ensure!(spc.on("/srv/elsewhere")?.is_empty() && spc.on("/srv/elsewhere/data")?.is_empty());
        // kubelet's root directory may be anywhere.
        host.sh(&format!(
            "mv {ROOT} /srv/kubelet && ln -s /srv/kubelet {ROOT} && rm {target} && mkdir {target}"
        ))?
        .ok()?;
        mounter(host, &["-t", "glusterfs", &source, &target])?.ok()?;
        ensure!(spc.on(target.replace(ROOT, "/srv/kubelet"))?.len() == 1);
        host.run(&["umount", &target])?.ok()?;
        until("the mount is forgotten", || Ok(spc.is_clean().is_ok()))
    });
}

#[test]
fn the_mounter_starts_statd_for_nfs_3() {
    with_vm(|spc| {
        install_there(spc)?;
        let server = lab::knfsd().context("no server")?;
        let source = format!("{}:/data", server.vm().address());
        let target = own_directory("nfs", "1-2");
        spc.host.sh(&format!("mkdir -p -m 0750 {target}"))?.ok()?;
        ensure_running(spc, &[])?;
        for options in ["hard,nfsvers=3", "hard,nfsvers=4.1,ro"] {
            mounter(&spc.host, &["-t", "nfs", "-o", options, &source, &target])?.ok()?;
            ensure!(spc.host.read(format!("{target}/file"))? == b"served\n");
            if options.contains("=3") {
                ensure_running(spc, &BOTH)?;
            }
            spc.host.run(&["umount", &target])?.ok()?;
            until("the mount is forgotten", || Ok(spc.is_clean().is_ok()))?;
        }
        until_running(spc, &[])
    });
}

#[test]
fn a_mounters_daemon_is_outside_of_kubelets_scope() {
    with_gluster(|lab, cluster| {
        let spc = VmSpc::boot(
            lab,
            VmOptions {
                root: Root::Systemd,
                memory: 1536,
                ..VmOptions::default()
            },
        )?;
        install_there(&spc)?;
        let host = &spc.host;
        let target = own_directory("glusterfs", "1-2");
        host.sh(&format!("mkdir -p -m 0750 {target}"))?.ok()?;
        let source = format!("{}:/vol", cluster.nodes()[0].host().address());
        let description = format!("--description=Kubernetes transient mount for {target}");
        let run = ["systemd-run", &description, "--scope", "--"];
        let mount = [
            "/var/lib/spc/mounter",
            "mount",
            "-t",
            "glusterfs",
            &source,
            &target,
        ];
        host.run(&[&run[..], &mount].concat())?.ok()?;
        ensure!(spc.on(&target)?.len() == 1);
        // The mount does not depend on kubelet's scope, which ends now.
        let daemon = spc.record(&target)?["daemon"][0].to_string();
        let cgroup = host.sh(&format!("cat /proc/{daemon}/cgroup"))?.ok()?.text();
        ensure!(
            cgroup.contains("/spc-") && !cgroup.contains("/run-"),
            "{cgroup}"
        );
        let failed = host.run(&[&run[..], &mount[..5], &["/var/lib/kubelet/../x"]].concat())?;
        ensure!(
            failed.error_text().contains("bad target") && !failed.success(),
            "{failed}"
        );
        host.run(&["umount", &target])?.ok()?;
        until("the mount is forgotten", || Ok(spc.is_clean().is_ok()))
    });
}
