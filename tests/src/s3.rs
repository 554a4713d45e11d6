//! A real S3 server: moto on a host of the lab, with its objects in memory.

use anyhow::{Context, Result};
use std::time::Instant;

use crate::host::{Host, HostOptions};
use crate::outer::Lab;
use crate::roots::Root;

/// A host with two S3 servers, each with a bucket `bucket`. The open server needs no
/// authentication. The guarded server accepts requests signed with its one key; moto checks
/// signatures of plain paths only.
#[derive(Debug)]
pub struct ObjectStore<'lab> {
    host: Host<'lab>,
    key: String,
}

const OPEN: u16 = 9000;
const GUARDED: u16 = 9001;

/// Starts both servers. The first requests need no signature.
const START: &str = "
export AWS_DEFAULT_REGION=us-east-1
INITIAL_NO_AUTH_ACTION_COUNT=1000000000 setsid moto_server -H 0.0.0.0 -p 9000 </dev/null >/var/log/moto-open 2>&1 &
INITIAL_NO_AUTH_ACTION_COUNT=4 setsid moto_server -H 0.0.0.0 -p 9001 </dev/null >/var/log/moto-guarded 2>&1 &
for port in 9000 9001; do until busybox wget -qO /dev/null http://127.0.0.1:$port/moto-api/data.json 2>/dev/null; do sleep 0.1; done; done
";

/// Common beginning of the scripts below.
const PYTHON: &str = r#"
import boto3, json, sys
def at(service, port):
    return boto3.client(service, endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1",
                        aws_access_key_id="x", aws_secret_access_key="x")
"#;

/// Makes the buckets, and a key for the server on the second port, and prints the key as
/// `ID:SECRET`.
const SETUP: &str = r#"
for port in 9000, 9001:
    at("s3", port).create_bucket(Bucket="bucket")
iam = at("iam", 9001)
iam.create_user(UserName="u")
key = iam.create_access_key(UserName="u")["AccessKey"]
allow = {"Effect": "Allow", "Action": "*", "Resource": "*"}
iam.put_user_policy(UserName="u", PolicyName="all", PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allow]}))
print(key["AccessKeyId"] + ":" + key["SecretAccessKey"])
"#;

/// Prints an object.
const GET: &str = r#"
sys.stdout.buffer.write(at("s3", 9000).get_object(Bucket="bucket", Key=sys.argv[1])["Body"].read())
"#;

impl Lab {
    /// Starts both servers.
    pub fn s3(&self) -> Result<ObjectStore<'_>> {
        let started = Instant::now();
        let host = self.host(HostOptions {
            root: Root::Shares,
            ..HostOptions::default()
        })?;
        host.sh(START)?.ok().context("no S3 server")?;
        let setup = [PYTHON, SETUP].concat();
        let key = host.run(&["python3", "-c", &setup])?.ok()?.text();
        host.say_cost("an S3 server", started);
        Ok(ObjectStore { host, key })
    }
}

impl<'lab> ObjectStore<'lab> {
    /// Returns the host of the servers.
    pub fn host(&self) -> &Host<'lab> {
        &self.host
    }

    /// Returns the URL of the open server.
    pub fn open(&self) -> String {
        format!("http://{}:{OPEN}", self.host.address())
    }

    /// Returns the URL of the guarded server, whose requests are signed with [`Self::key`].
    pub fn guarded(&self) -> String {
        format!("http://{}:{GUARDED}", self.host.address())
    }

    /// Returns the key as `ID:SECRET`, the format of s3fs's password file.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Kills both servers, as a power cut does.
    pub fn stop(&self) -> Result<()> {
        self.host.sh("busybox killall -9 moto_server")?.ok()?;
        Ok(())
    }

    /// Returns an object of the open server, read on its host.
    pub fn object(&self, name: &str) -> Result<Vec<u8>> {
        let get = [PYTHON, GET].concat();
        let words = ["python3", "-c", &get, name];
        Ok(self.host.run(&words)?.ok()?.stdout)
    }
}
