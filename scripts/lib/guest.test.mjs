import test from 'ava';

import { runGuest } from './guest.mjs';

const shell = (/** @type {string} */ script) => ({ args: ['sh', '-c', script], env: process.env });

test('a guest that does not boot is not waited for as long as its suites may take', async (t) => {
  const { console, problem, crashed } = await runGuest(shell('echo SeaBIOS; exec sleep 100'), {
    seconds: 100,
    secondsToBoot: 1,
  });
  t.is(console, 'SeaBIOS\n');
  t.is(problem, 'the guest did not boot within 1 s');
  t.false(crashed);
});

test('one that has booted may take longer, and not longer than its suites', async (t) => {
  const booted = 'echo towline: boot; ';
  const whole = await runGuest(shell(`${booted} sleep 4; echo towline: done`), { seconds: 100, secondsToBoot: 3 });
  t.deepEqual(whole, { console: 'towline: boot\ntowline: done\n', problem: undefined, stderr: '', crashed: false });
  const late = await runGuest(shell(`${booted} exec sleep 100`), { seconds: 4, secondsToBoot: 3 });
  t.is(late.problem, 'the guest did not end within 4 s');
});

test('how QEMU ends is told', async (t) => {
  const { problem, crashed } = await runGuest(shell('echo "qemu: Assertion failed" >&2; kill -ABRT $$'), {
    seconds: 100,
    secondsToBoot: 50,
  });
  t.regex(problem ?? '', /^QEMU ended with (134|SIGABRT): qemu: Assertion failed/);
  t.true(crashed);
});
