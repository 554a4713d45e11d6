//! Code for the gRPC services of the driver, generated from `spc/proto`. The code in the tree spares
//! everybody who builds spc the compiler of the messages.

#[test]
fn the_generated_code_in_the_tree_is_that_of_the_messages() {
    for (file, generated, in_tree) in [
        (
            "csi.v1.rs",
            include_str!(concat!(env!("OUT_DIR"), "/server/csi.v1.rs")),
            include_str!("../../spc/proto/generated/csi.v1.rs"),
        ),
        (
            "pluginregistration.rs",
            include_str!(concat!(env!("OUT_DIR"), "/server/pluginregistration.rs")),
            include_str!("../../spc/proto/generated/pluginregistration.rs"),
        ),
    ] {
        assert!(
            generated == in_tree,
            "copy {}/server/{file} to spc/proto/generated",
            env!("OUT_DIR")
        );
    }
}
