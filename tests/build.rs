//! Generates a client for the gRPC services of the driver.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let proto = "../spc/proto";
    println!("cargo:rerun-if-changed={proto}");
    let files = protox::compile(["csi.proto", "registration.proto"], [proto])?;
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds(files)?;
    Ok(())
}
