//! Generates the code for the gRPC services of the driver: the client of the tests, and the server as
//! it has to be in `spc/proto/generated`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "../spc/proto";
    println!("cargo:rerun-if-changed={proto}");
    let files = protox::compile(["csi.proto", "registration.proto"], [proto])?;
    let server = Path::new(&std::env::var("OUT_DIR")?).join("server");
    std::fs::create_dir_all(&server)?;
    tonic_prost_build::configure()
        .build_client(false)
        // A request holds secrets; nothing may print it by chance.
        .skip_debug(["."])
        .out_dir(server)
        .compile_fds(files.clone())?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(files)?;
    Ok(())
}
