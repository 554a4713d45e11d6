//! SMB volumes of pods whose servers are hostile.

use std::time::{Duration, Instant};

use anyhow::ensure;
use lab::{HostOptions, Root, Samba};

use crate::kubernetes::kubelet::{driver, install_there};
use crate::support::{VmSpc, until, with_lab};

/// Plays a server that accepts any ticket. It prints each session and each share that a client
/// connects to, and answers nothing else, passwords neither.
const SERVER: &str = r#"
import socket, struct, threading, time
MECHANISMS = [bytes.fromhex(oid) for oid in ('06092a864882f712010202', '06092a864886f712010202', '060a2b06010401823702020a')]
def wrap(tag, inner):
    return bytes([tag, len(inner)]) + inner
BLOB = wrap(0x60, bytes.fromhex('06062b0601050502') + wrap(0xa0, wrap(0x30, wrap(0xa0, wrap(0x30, b''.join(MECHANISMS))))))
def serve(client):
    while True:
        head = client.recv(4, socket.MSG_WAITALL)
        if len(head) < 4:
            return
        data = client.recv(struct.unpack('>I', head)[0], socket.MSG_WAITALL)
        command, = struct.unpack('<H', data[12:14])
        message, = struct.unpack('<Q', data[24:32])
        session, = struct.unpack('<Q', data[40:48])
        tree = 0
        if command == 0:
            now = int((time.time() + 11644473600) * 10**7)
            body = struct.pack('<HHHH', 65, 1, 0x210, 0) + b'g' * 16 + struct.pack('<IIIIQQHHI', 0, 65536, 65536, 65536, now, 0, 128, len(BLOB), 0) + BLOB
        elif command == 1:
            blob = data[struct.unpack('<H', data[76:78])[0]:]
            print('session', 'by ticket' if blob.startswith(b'kkkk') else 'by password', flush=True)
            if not blob.startswith(b'kkkk'):
                continue
            session = 0x77
            body = struct.pack('<HHHH', 9, 0, 72, 1) + b'x'
        elif command == 3:
            at, length = struct.unpack('<HH', data[68:72])
            print('share', data[at:at + length].decode('utf-16-le').split('\\')[-1], hex(session), flush=True)
            tree = 5
            body = struct.pack('<HBBIII', 16, 1, 0, 0, 0, 0x1f01ff)
        elif command == 13:
            body = struct.pack('<HH', 4, 0)
        else:
            continue
        reply = b'\xfeSMB' + struct.pack('<HHIHHIIQIIQ', 64, 1, 0, command, 64, 1, 0, message, 0, tree, session) + bytes(16) + body
        client.sendall(struct.pack('>I', len(reply)) + reply)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(('0.0.0.0', 445))
listener.listen(8)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"#;

#[test]
#[ignore = "long: a virtual machine, and a server that keeps it waiting"]
fn a_server_of_a_pod_does_not_prevent_other_smb_mounts() {
    with_lab(|lab| {
        let server = lab.host(HostOptions {
            root: Root::Shares,
            ..HostOptions::default()
        })?;
        server.write("/srv/server.py", SERVER.as_bytes())?;
        let mut log = server.spawn(&["python3", "/srv/server.py"])?;
        let samba = lab.samba()?;
        let spc = VmSpc::privileged(lab)?;
        install_there(&spc)?;
        let host = &spc.host;
        // The pod's server does not answer when it gets a password.
        let target = "/var/lib/kubelet/pods/1-0/volumes/spc~spc/data";
        let json = format!(
            r#"{{"kubernetes.io/fsType":"cifs","source":"//{}/of-the-pod","options":"username=a,vers=2.1,echo_interval=600","kubernetes.io/secret/password":"Yg==","timeout":"3600"}}"#,
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
        std::thread::sleep(Duration::from_secs(2));
        let line = format!("{}\n", Samba::PASSWORD);
        spc.put("/run/password", line.as_bytes())?;
        let source = format!("//{}/data", samba.address());
        let mount = [
            "runc",
            "exec",
            "spc",
            "spc",
            "mount",
            "--timeout",
            "60",
            "-t",
            "cifs",
            "-o",
            "username=alice",
            "--secret",
            "password=file:/run/password",
            &source,
            "/mnt/a",
        ];
        let began = Instant::now();
        let mounted = host.command(&mount).limit(Duration::from_secs(120)).run();
        let took = began.elapsed();
        let seen = host.sh("cat /tmp/pod; dmesg | tail -n 5; cat /proc/[0-9]*/stack 2>/dev/null | grep -c cifs_mount")?;
        ensure!(
            mounted.as_ref().is_ok_and(|mounted| mounted.success())
                && took < Duration::from_secs(40),
            "{took:?} {mounted:?} {seen}"
        );
        Ok(())
    });
}
