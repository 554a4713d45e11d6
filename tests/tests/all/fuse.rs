//! FUSE programs that ask a server, with the server's side looked at.

use anyhow::{Result, ensure};
use lab::ObjectStore;

use crate::support::{Spc, with_lab};

/// Files of a bucket, through s3fs; its key comes from a file.
fn bucket(spc: &Spc<'_>, store: &ObjectStore<'_>) -> Result<()> {
    let host = &spc.host;
    spc.put("/run/key", store.key().as_bytes())?;
    let options = format!("use_path_request_style,url={}", store.open());
    let mount = [
        "-t",
        "fuse.s3fs",
        "-o",
        &options,
        "--secret",
        "passwd=file:/run/key",
        "bucket",
    ];
    spc.life(&mount, "/mnt/s3", ["fuse.s3fs", "bucket"], |record| {
        ensure!(record["route"] == "preload", "{record}");
        host.write("/mnt/s3/file", b"written on the host")?;
        host.sh("cd /mnt/s3 && mkdir dir && mv file dir/moved && ls dir | grep -qx moved")?
            .ok()?;
        ensure!(store.object("dir/moved")? == b"written on the host");
        // In parts, as big objects are sent.
        let big = host
            .sh("head -c 30000000 /dev/urandom | tee /mnt/s3/big")?
            .ok()?;
        ensure!(big.stdout.len() == 30_000_000);
        ensure!(store.object("big")? == big.stdout, "other bytes");
        Ok(())
    })?;
    let read_only = ["-o", "ro", "-t", "fuse.s3fs", "-o", &options, "--secret"];
    let mount = [&read_only[..], &["passwd=file:/run/key", "bucket:/dir"]].concat();
    spc.life(&mount, "/mnt/s3", ["fuse.s3fs", "bucket:/dir"], |_| {
        ensure!(host.read("/mnt/s3/moved")? == b"written on the host");
        let refused = host.sh("echo x >/mnt/s3/new")?;
        ensure!(refused.error_text().contains("Read-only"), "{refused}");
        Ok(())
    })
}

#[test]
fn a_bucket_of_an_s3_server() {
    with_lab(|lab| {
        let store = lab.s3()?;
        bucket(&Spc::usual(lab)?, &store)
    });
}

#[test]
fn s3fs_says_why_it_cannot_mount() {
    with_lab(|lab| {
        let store = lab.s3()?;
        let spc = Spc::least(lab)?;
        spc.host.sh("mkdir -p /mnt/s3")?.ok()?;
        let (guarded, key) = (store.guarded(), store.key());
        let attempt = |options: &str, key: &str, source: &str| -> Result<Vec<String>> {
            spc.put("/run/key", key.as_bytes())?;
            spc.sh("chmod 600 /run/key")?.ok()?;
            let options = format!("sigv4,use_path_request_style{options}");
            let words = [
                "spc",
                "mount",
                "-t",
                "fuse.s3fs",
                "-o",
                &options,
                source,
                "/mnt/s3",
            ];
            Ok(words.map(str::to_owned).to_vec())
        };
        let refused = |words: Vec<String>, says: &[&str]| {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            spc.refused(&words, 32, says)
        };
        let url = format!(",passwd_file=/run/key,url={guarded}");

        // The server checks what the key signs: the right one is let in.
        let words = attempt(&url, key, "bucket")?;
        let words: Vec<&str> = words.iter().skip(2).map(String::as_str).collect();
        let [words @ .., _] = words.as_slice() else {
            unreachable!()
        };
        spc.life(words, "/mnt/s3", ["fuse.s3fs", "bucket"], |_| {
            spc.host.write("/mnt/s3/file", b"signed")?;
            ensure!(spc.host.read("/mnt/s3/file")? == b"signed");
            Ok(())
        })?;

        let (id, secret) = key.split_once(':').unwrap_or_default();
        let wrong = attempt(&url, &format!("{id}:not{secret}"), "bucket")?;
        let output = refused(wrong, &["s3fs failed", "passwd_file"])?;
        ensure!(!format!("{output}").contains(secret), "{output}");
        let nowhere = attempt(&url, key, "no-bucket")?;
        refused(nowhere, &["s3fs failed", "not found", "check the bucket"])?;
        let without = attempt(&format!(",url={guarded}"), key, "bucket")?;
        refused(without, &["security credentials", "name the key"])?;
        store.stop()?;
        let down = attempt(&url, key, "bucket")?;
        refused(down, &["Unable to connect", "can reach the server"])?;
        Ok(())
    });
}
