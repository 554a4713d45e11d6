//! The CSI controller with hostile names and trees, calls that are killed, and servers that are
//! gone.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, kill_process};
use serde_json::json;
use tonic::Code;

use crate::kubernetes::csi::{Mode, proto, refused, target};
use crate::kubernetes::csi_controller::{
    Controller, Provisioned, Reply, SETTINGS, capability, publish, request, serve, set_backends,
    start, unpublish,
};
use crate::kubernetes::csi_failures::workers;
use crate::support::{Spc, until, with_gluster, with_lab};

/// Server that nobody has.
const NOBODY: &str = "192.0.2.254";

#[test]
fn names_that_lead_elsewhere_are_refused_before_any_mount() {
    with_lab(|lab| {
        let nowhere = json!({"name": "data", "type": "nfs", "source": format!("{NOBODY}:/x")});
        let spc = serve(lab, &json!([nowhere]))?;
        let controller = Controller::new(&spc)?;
        let class = [("backend", "data")];
        let invalid = |request: proto::CreateVolumeRequest, words: &str| {
            let reply = controller.create(request).map(drop);
            refused(reply, Code::InvalidArgument, words)
        };
        let long = "x".repeat(129);
        for name in [
            "", "..", ".", "a/../..", "/etc", ".spc", "a\nb", "-o", "a b", "a:b", &long,
        ] {
            invalid(request(name, "web", &class, 0), "")?;
        }
        // Longer than an id may be, with the backend's name.
        invalid(
            request(&"x".repeat(125), "web", &class, 0),
            "longer than 128 bytes",
        )?;
        let by_claim = [
            ("backend", "data"),
            ("directory", "${pvc.namespace}/${pvc.name}"),
        ];
        for claim in [
            "../web",
            "team/..",
            "team/.",
            "team/a/b",
            "team/a\nb",
            "team/",
        ] {
            invalid(request("pvc-1", claim, &by_claim, 0), "")?;
        }
        for (parameter, value) in [
            ("directory", "../x"),
            ("directory", "${pvc.uid}"),
            ("server", NOBODY),
            ("onDelete", "shred"),
            ("mode", "u+s"),
            ("owner", "root"),
        ] {
            let class = [("backend", "data"), (parameter, value)];
            invalid(request("pvc-1", "web", &class, 0), parameter)?;
        }
        invalid(request("pvc-1", "web", &[], 0), "backend")?;
        invalid(
            request("pvc-1", "web", &[("backend", "other")], 0),
            "no backend other",
        )?;
        let good = || request("pvc-1", "web", &class, 0);
        let mut bad = good();
        bad.volume_capabilities.clear();
        invalid(bad, "volume_capabilities")?;
        let mut bad = good();
        let block = proto::volume_capability::BlockVolume {};
        bad.volume_capabilities[0].access_type =
            Some(proto::volume_capability::AccessType::Block(block));
        invalid(bad, "Block")?;
        let mut bad = good();
        bad.volume_content_source = Some(proto::VolumeContentSource {});
        invalid(bad, "begin empty")?;
        let mut bad = good();
        bad.secrets.insert("key".into(), "hunter2".into());
        invalid(bad, "secret")?;
        let mut bad = good();
        bad.capacity_range = Some(proto::CapacityRange {
            required_bytes: 2,
            limit_bytes: 1,
        });
        refused(controller.create(bad).map(drop), Code::OutOfRange, "")?;
        invalid(request("pvc-1", "web", &class, -1), "negative")?;

        // An id that no volume can have is that of none; one of an unknown backend may be of one.
        for id in [
            "data",
            "data/..",
            "data/../x",
            "../data",
            "/",
            "data/.spc/volumes",
            "a\nb",
        ] {
            controller.delete(id)?;
            let check = proto::ValidateVolumeCapabilitiesRequest {
                volume_id: id.to_owned(),
                volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
                ..proto::ValidateVolumeCapabilitiesRequest::default()
            };
            refused(controller.validate(check).map(drop), Code::NotFound, "")?;
            refused(controller.expand(id, 1, 0).map(drop), Code::NotFound, "")?;
        }
        refused(controller.delete(""), Code::InvalidArgument, "volume_id")?;
        refused(
            controller.delete("other/x"),
            Code::FailedPrecondition,
            "no backend other",
        )?;

        // Servers that are gone: the limit holds, nothing is left, and the caller tries again.
        let began = Instant::now();
        let limit = Duration::from_secs(8);
        let reply = controller.create_within(limit, good()).map(drop);
        ensure!(began.elapsed() < limit, "{:?}", began.elapsed());
        refused(reply, Code::Unavailable, "backend data: ")?;
        let reply = controller.delete_within(limit, "data/pvc-1");
        refused(reply, Code::Unavailable, "backend data: ")?;
        until("nothing is left", || Ok(spc.is_clean().is_ok()))?;

        // The file may change, and a mistake in it is not fatal.
        spc.host
            .write(format!("{}/backends.json", SETTINGS), b"[{")?;
        refused(
            controller.create(good()).map(drop),
            Code::Unavailable,
            "bad JSON",
        )?;
        set_backends(&spc, &json!([]))?;
        invalid(good(), "no backend data")
    });
}

/// Makes a volume with a file, as a pod does.
fn made(spc: &Spc<'_>, controller: &Controller, name: &str) -> Result<proto::Volume> {
    let volume = controller.create(request(name, "x", &[("backend", "data")], 0))?;
    publish(spc, &volume, "1-1")?;
    Ok(volume)
}

#[test]
fn nothing_outside_of_a_removed_tree_is_touched() {
    with_gluster(|lab, cluster| {
        let test = Provisioned::new(lab, cluster, "hostile")?;
        let (spc, controller) = (&test.spc, &test.controller);
        let precious = controller.create(request("precious", "x", &[("backend", "data")], 0))?;
        publish(spc, &precious, "1-2")?;
        spc.host
            .sh("mkdir -p /srv/outside && echo kept >/srv/outside/file")?
            .ok()?;
        spc.host.write(format!("{}/file", target("1-2")), b"kept")?;

        // Links of a pod, and names as only a pod gives them.
        let volume = made(spc, controller, "links")?;
        let tree = target("1-1");
        let plant = format!(
            "cd {tree} && mkdir -p a/b/c && ln -s /srv/outside a/host && ln -s ../precious b && \
             ln -s ../../../precious a/b/up && ln -s .. a/parent && ln -s / root && ln -s a self && \
             mkfifo a/pipe && mknod a/null c 1 3 && mkdir 'a/-rf' 'a/ ' \"$(printf 'a/x\\ny')\" && \
             touch 'a/*' 'a/%s' && mkdir -m 1777 a/sticky && touch a/sticky/file && \
             chown -R 1000:1000 a && chown 2000 a/sticky/file && chmod 000 a/b/c"
        );
        spc.host.sh(&plant)?.ok()?;
        unpublish(spc, &volume, "1-1")?;
        controller.delete(&volume.volume_id)?;

        // Deeper than the directories that are open at once.
        let volume = made(spc, controller, "deep")?;
        let deep =
            format!("cd {tree} && for i in $(seq 120); do mkdir d && cd d && echo x >file; done");
        spc.host.sh(&deep)?.ok()?;
        unpublish(spc, &volume, "1-1")?;
        controller.delete(&volume.volume_id)?;

        // Another file system on the controller's node, on its own mount of the backend.
        let volume = made(spc, controller, "mounted")?;
        spc.host
            .sh(&format!("mkdir {tree}/point && touch {tree}/other"))?
            .ok()?;
        unpublish(spc, &volume, "1-1")?;
        let point = "/run/spc/backends/data/mounted/point";
        spc.host
            .run(&["mount", "--bind", "/srv/outside", point])?
            .ok()?;
        let reply = controller.delete(&volume.volume_id);
        refused(reply, Code::Unavailable, "cannot remove point")?;
        ensure!(spc.host.read("/srv/outside/file")? == b"kept\n");
        spc.host
            .run(&["umount", "/run/spc/backends/data/.spc/trash/mounted/point"])?
            .ok()?;
        controller.delete(&volume.volume_id)?;

        // The server has a link in the place of the volume.
        let volume = controller.create(request("linked", "x", &[("backend", "data")], 0))?;
        spc.mount(&["-t", "glusterfs", &test.source(), "/mnt/whole"])?;
        spc.host
            .sh("cd /mnt/whole && rmdir linked && ln -s precious linked")?
            .ok()?;
        controller.delete(&volume.volume_id)?;
        ensure!(test.on_server("ls -d linked; true")?.is_empty());
        // In the place of a directory above it. Clients know names for a second.
        let class = [("backend", "data"), ("directory", "above/${pvc.name}")];
        let volume = controller.create(request("pvc-9", "file", &class, 0))?;
        spc.host
            .sh("cd /mnt/whole && mv above real && ln -s precious above && sleep 2")?
            .ok()?;
        refused(
            controller.delete(&volume.volume_id),
            Code::Unavailable,
            "cannot move",
        )?;
        let into = controller
            .create(request("pvc-8", "new", &class, 0))
            .map(drop);
        ensure!(into.is_err_and(|status| status.code() == Code::Unavailable));
        spc.host
            .sh("cd /mnt/whole && rm above && mv real above && sleep 2")?
            .ok()?;
        controller.delete(&volume.volume_id)?;
        spc.umount("/mnt/whole")?;

        ensure!(spc.host.read(format!("{}/file", target("1-2")))? == b"kept");
        ensure!(test.on_server("ls -A precious")? == "file");
        ensure!(spc.host.read("/srv/outside/file")? == b"kept\n");
        unpublish(spc, &precious, "1-2")?;
        controller.delete(&precious.volume_id)?;
        ensure!(test.on_server("find .spc -mindepth 2")?.is_empty());
        Ok(())
    });
}

/// Makes a tree of a volume with this number of files, on its servers' client.
fn fill(spc: &Spc<'_>, files: u32) -> Result<()> {
    let script = format!(
        "cd {} && mkdir -p a/b c && for i in $(seq {}); do echo >f$i; echo >a/f$i; echo >a/b/f$i; done",
        target("1-1"),
        files / 3
    );
    spc.host.sh(&script)?.ok()?;
    Ok(())
}

#[test]
fn killed_and_interrupted_calls_are_finished_by_the_next_one() {
    with_gluster(|lab, cluster| {
        let test = Provisioned::new(lab, cluster, "killed")?;
        let (spc, controller) = (&test.spc, &test.controller);
        let left = |what: &str| -> Result<()> {
            let found = test.on_server("find .spc -mindepth 2; ls -d killed* 2>/dev/null; true")?;
            ensure!(found.is_empty(), "{what} left {found}");
            Ok(())
        };
        // The backend is mounted once, so that the moments are those of the work.
        controller.delete("data/none")?;
        let mut interrupted = 0;
        for round in 0..12_u32 {
            let wanted = request(&format!("killed-{round}"), "x", &[("backend", "data")], 0);
            let id = format!("data/killed-{round}");
            let deletes = round % 2 == 1;
            if deletes {
                let volume = controller.create(wanted.clone())?;
                publish(spc, &volume, "1-1")?;
                fill(spc, 60)?;
                unpublish(spc, &volume, "1-1")?;
            }
            let reply = std::thread::scope(|scope| -> Result<_> {
                let killer = scope.spawn(|| {
                    let deadline = Instant::now() + Duration::from_secs(5);
                    while workers(spc).is_empty() && Instant::now() < deadline {}
                    std::thread::sleep(Duration::from_millis(u64::from(6 * round)));
                    for worker in workers(spc) {
                        let _: std::result::Result<(), _> = kill_process(worker, Signal::KILL);
                    }
                });
                let reply = match deletes {
                    true => controller.delete(&id),
                    false => controller.create(wanted.clone()).map(drop),
                };
                killer.join().map_err(|_| anyhow::anyhow!("a panic"))?;
                Ok(reply)
            })?;
            if let Err(status) = reply {
                ensure!(status.code() == Code::Aborted, "{status:?}");
                interrupted += 1;
            }
            if !deletes {
                let volume = controller.create(wanted.clone()).context(round)?;
                ensure!(test.on_server(&format!("stat -c %a killed-{round}"))? == "777");
                ensure!(controller.create(wanted)? == volume);
            }
            controller.delete(&id).context(round)?;
            left(&id)?;
        }
        ensure!(
            interrupted > 2,
            "{interrupted} calls were killed in the middle"
        );

        // A tree that one call cannot remove.
        let volume = made(spc, controller, "killed-large")?;
        fill(spc, 3000)?;
        unpublish(spc, &volume, "1-1")?;
        // The backend may have been idle meanwhile, and unmounted.
        controller.delete("data/none")?;
        let mut calls = 0;
        loop {
            calls += 1;
            // Six seconds, of which five are kept to undo what was begun.
            match controller.delete_within(Duration::from_secs(6), &volume.volume_id) {
                Ok(()) => break,
                Err(status) => ensure!(
                    status.code() == Code::DeadlineExceeded
                        && status.message().contains("the next call continues"),
                    "{status:?}"
                ),
            }
            ensure!(calls < 60);
        }
        eprintln!("3000 files: {calls} calls");
        ensure!(calls > 1, "one call removed everything");
        left("the removal of a large tree")?;

        // The container is killed, with its daemons of the backend.
        let volume = controller.create(request("killed-again", "x", &[("backend", "data")], 0))?;
        spc.host
            .run(&["docker", "kill", "-s", "KILL", "spc"])?
            .ok()?;
        let daemon = "pkill -KILL -f '[r]un/spc/backends' || busybox killall -9 glusterfs";
        spc.host.sh(&format!("{daemon}; true"))?.ok()?;
        spc.remove()?;
        start(spc)?;
        let controller = Controller::new(spc)?;
        controller.delete(&volume.volume_id)?;
        left("the volume of a killed controller")?;
        spc.host.run(&["docker", "stop", "spc"])?.ok()?;
        ensure!(spc.on("/run/spc/backends/data")?.is_empty());
        Ok(())
    });
}

#[test]
fn parallel_requests_make_one_volume_and_two_claims_never_share_one() {
    with_gluster(|lab, cluster| {
        let test = Provisioned::new(lab, cluster, "parallel")?;
        let spc = &test.spc;
        // Two parameters of a class that give two claims the same directory.
        let class = [
            ("backend", "data"),
            ("directory", "${pvc.namespace}-${pvc.name}"),
        ];
        let claims = [("pvc-1", "a-b/c"), ("pvc-2", "a/b-c")];
        let parallel = |call: &(dyn Fn(&Controller, usize) -> Reply<String> + Sync)| {
            std::thread::scope(|scope| -> Result<Vec<Reply<String>>> {
                let calls = (0..10)
                    .map(|number| scope.spawn(move || Ok(call(&Controller::new(spc)?, number))));
                let calls: Vec<_> = calls.collect();
                let join = |call: std::thread::ScopedJoinHandle<'_, _>| {
                    call.join().map_err(|_| anyhow::anyhow!("a panic"))?
                };
                calls.into_iter().map(join).collect()
            })
        };
        let made = parallel(&|controller, number| {
            let (name, claim) = claims[number % 2];
            let volume = controller.create(request(name, claim, &class, 0))?;
            Ok(volume.volume_id)
        })?;
        let succeeded: Vec<bool> = made.iter().map(Reply::is_ok).collect();
        let first = succeeded[0];
        for (number, reply) in made.into_iter().enumerate() {
            if number.is_multiple_of(2) == first {
                ensure!(reply? == "data/a-b-c");
            } else {
                refused(reply.map(drop), Code::AlreadyExists, "it belongs to pvc-")?;
            }
        }
        ensure!(test.on_server("ls")? == "a-b-c");
        ensure!(spc.on("/run/spc/backends/data")?.len() == 1);
        let removed =
            parallel(&|controller, _| controller.delete("data/a-b-c").map(|()| String::new()))?;
        for reply in removed {
            reply?;
        }
        ensure!(test.on_server("ls; find .spc -mindepth 2")?.is_empty());
        Ok(())
    });
}

#[test]
fn what_is_mounted_in_a_brick_is_not_entered() {
    with_gluster(|lab, cluster| {
        let test = Provisioned::new(lab, cluster, "brick")?;
        // Of another file system, and of the brick's own: clients see directories like any other.
        for (name, outside) in [("other", "/srv/outside"), ("same", "/bricks/outside")] {
            let volume = made(&test.spc, &test.controller, name)?;
            let fill = format!("mkdir -p {0}/a/sub && echo x >{0}/a/file", target("1-1"));
            test.spc.host.sh(&fill)?.ok()?;
            unpublish(&test.spc, &volume, "1-1")?;
            for node in cluster.nodes() {
                let sub = node
                    .brick("vol")
                    .join(format!("requested-brick/{name}/a/sub"));
                let plant = format!(
                    "mkdir -p {outside}/d && echo kept >{outside}/d/file && mount --bind {outside} {}",
                    sub.display()
                );
                node.host().sh(&plant)?.ok()?;
            }
            let reply = test.controller.delete(&volume.volume_id);
            refused(reply, Code::Unavailable, "cannot remove sub")?;
            for node in cluster.nodes() {
                ensure!(node.host().read(format!("{outside}/d/file"))? == b"kept\n");
                let free = "umount $(grep requested-brick /proc/self/mountinfo | cut -d' ' -f5)";
                node.host().sh(free)?.ok()?;
            }
            test.controller.delete(&volume.volume_id)?;
            ensure!(test.on_server("ls; find .spc -mindepth 2")?.is_empty());
        }
        Ok(())
    });
}
