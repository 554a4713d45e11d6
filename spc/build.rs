//! Generates the gRPC services in `proto/`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(["csi.proto", "registration.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_client(false)
        // A request holds secrets; nothing may print it by chance.
        .skip_debug(["."])
        .compile_fds(files)?;
    Ok(())
}
