import { closeSync, openSync } from 'node:fs';
import test from 'ava';
import { kvmDirtySource, type KvmSlot } from '#towline/dirty/kvm.js';

const slot: KvmSlot = { slot: 0, gpa: 0n, len: 4096n, userspaceAddr: 4096n };

// What a virtual machine does with it, crates/linux/tests/kvm shows.
test('what is no virtual machine is refused, and told why', (t) => {
  const fd = openSync('/dev/null', 'r+');
  t.teardown(() => closeSync(fd));
  t.throws(() => kvmDirtySource({ vmFd: fd, slots: [] }), {
    code: 'ERR_TOWLINE_UNSUPPORTED',
    message: /not that of a KVM virtual machine/,
  });
  t.throws(() => kvmDirtySource({ vmFd: fd, slots: [slot], mode: { ring: [fd], entries: 4096 } }), {
    code: 'ERR_TOWLINE_UNSUPPORTED',
  });
  t.throws(() => kvmDirtySource({ vmFd: 99_999, slots: [] }), { code: 'ERR_TOWLINE_GONE', message: /EBADF/ });
  t.throws(() => kvmDirtySource({ vmFd: -1, slots: [] }), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
  t.throws(() => kvmDirtySource({ vmFd: fd, slots: [{ ...slot, gpa: -1n }] }), {
    code: 'ERR_TOWLINE_INVALID_ARGUMENT',
  });
  t.throws(() => kvmDirtySource({ vmFd: fd, slots: [], mode: { ring: [-1] } }), {
    code: 'ERR_TOWLINE_INVALID_ARGUMENT',
  });
});
