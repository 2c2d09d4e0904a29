// Two vCPUs start at the same time, on the same tables. A guest without a device says so, and nothing else happens to it before.
import { closeSync, openSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { GuestMemory } from 'towline';
import { changedGuest } from './changed-guest.mjs';

/** Elsewhere there is no native part. */
const native =
  process.platform === 'linux' && process.arch === 'x64'
    ? await import(fileURLToPath(new URL('../native/index.js', import.meta.url)))
    : undefined;
const why = native === undefined ? 'only built for Linux on x86-64' : native.unavailable();
/** @param {string} title @param {(t: import('ava').ExecutionContext) => Promise<void>} body */
const run = (title, body) =>
  why === undefined ? test.serial(title, body) : test.serial.skip(`${title}: ${why}`, body);
const BOOTS = 10;

/**
 * The guest whose vCPUs meet: the one that comes later stops amid the interrupt table until the other has used its gate of UD2.
 * @param {Record<string, string>} changes what else is replaced in kernel.c
 */
const meetingGuest = (changes = {}) =>
  changedGuest('kernel.c', {
    'static void set_gate(': 'static volatile bool started, written, amid, used;\nstatic void set_gate(',
    '        .high = (uint32_t)(address >> 32),\n    };\n':
      '        .high = (uint32_t)(address >> 32),\n    };\n    if (vector == 7 && written) for (amid = true; !used;) {}\n',
    'void kernel_init(void) {\n':
      'void kernel_init(void) {\n    const bool later = __atomic_exchange_n(&started, true, __ATOMIC_SEQ_CST);\n    while (later && !written) {}\n',
    '    set_gate(SPURIOUS_VECTOR, kernel_spurious, INTERRUPT_GATE);\n':
      '    set_gate(SPURIOUS_VECTOR, kernel_spurious, INTERRUPT_GATE);\n    if (!later) {\n        for (written = true; !amid;) {}\n        read_msr(0x1b);\n        used = true;\n    }\n',
    ...changes,
  });

/** Boots it many times, and tells what each one said. @param {Uint8Array} image @returns {Promise<string[]>} */
async function boots(image) {
  const memory = GuestMemory.anonymous('boot', 64n << 20n);
  const logFd = openSync('/dev/null', 'w');
  /** @type {string[]} */
  const said = [];
  try {
    for (let n = 0; n < BOOTS; n++) {
      const vm = new native.Vm({ vcpus: 2, memory: memory.regions(), logFd });
      try {
        vm.boot(image, { warm: false });
        vm.run();
        said.push(
          await vm.ready(10_000).then(
            () => 'ready',
            (/** @type {Error} */ error) => error.message,
          ),
        );
      } finally {
        vm.close();
      }
    }
  } finally {
    closeSync(logFd);
    memory.close();
  }
  return said;
}

run('a vCPU that starts later leaves the interrupt table as the other one uses it', async (t) => {
  const said = await boots(meetingGuest());
  t.deepEqual([...new Set(said)], ['microvm: device: vCPU 0 of the guest: no device answers']);
});

run('sabotage: one that writes a gate twice is noticed, and the exception is told', async (t) => {
  const said = await boots(meetingGuest({ 'f(5) f(7)': 'f(5) f(6) f(7)' }));
  t.is(said.length, BOOTS);
  for (const words of said)
    t.regex(
      words,
      /^microvm: device: vCPU [01] of the guest: a processor exception: vector 6, RIP 0x10[0-9a-f]{4}, RSP 0x/,
    );
});
