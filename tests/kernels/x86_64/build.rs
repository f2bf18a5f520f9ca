//! How to link a kernel with the toolchain of the host: no start files, no libraries, fixed address.

fn main() {
    let folder = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rerun-if-changed=link.ld");
    let script = format!("-Wl,-T,{folder}/link.ld");
    let options = [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=none",
        "-Wl,--no-eh-frame-hdr",
        "-Wl,-z,norelro",
        &script,
    ];
    for option in options {
        println!("cargo:rustc-link-arg-bins={option}");
    }
}
