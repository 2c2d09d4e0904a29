#!/usr/bin/env bash
# Builds crates/core for wasm32-unknown-unknown. Where the target is there, or rustup can add it, plain cargo does it.
# Elsewhere the standard library is built from source with Debian's rustc-web, whose sources and rust-lld belong together.
# The last line of output is the path of the built library.
set -euo pipefail
cd "$(dirname "$0")/.."

target=wasm32-unknown-unknown
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/wasm"
args=(build --release --locked -p towline-core --target "$target")

has_target() {
  local libdir
  libdir=$(rustc --print target-libdir --target "$target" 2>/dev/null) && compgen -G "$libdir/libcore-*.rlib" >/dev/null
}

if ! has_target && command -v rustup >/dev/null; then
  # Without a network, or with a toolchain that is not rustup's, this fails; then the other way is left.
  rustup target add "$target" >&2 || echo "rustup could not add $target: trying Debian's packages" >&2
fi

if has_target; then
  cargo "${args[@]}" >&2
else
  debian_rustc=/usr/bin/rustc
  if [ "$(dpkg-query -W -f '${Status};' rustc-web rust-web-src 2>/dev/null)" != 'install ok installed;install ok installed;' ]; then
    if [ "$(id -u)" -ne 0 ]; then
      echo "neither rustup's target $target nor the Debian packages rustc-web and rust-web-src are installed" >&2
      exit 1
    fi
    apt-get update -qq >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends rustc-web rust-web-src >&2
  fi
  sysroot=$("$debian_rustc" --print sysroot)
  RUSTC_BOOTSTRAP=1 RUSTC="$debian_rustc" \
    CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER="$sysroot/lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld" \
    cargo "${args[@]}" -Zbuild-std=core,alloc >&2
fi
echo "$CARGO_TARGET_DIR/$target/release/libtowline_core.rlib"
