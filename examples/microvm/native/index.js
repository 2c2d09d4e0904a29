// The addon, and what is easier said in JavaScript. index.d.ts documents it.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

const require = createRequire(import.meta.url);

function load() {
  try {
    return require('./microvm.linux-x64-gnu.node');
  } catch (error) {
    throw new Error('the native part of the microvm is not built: node build.mjs in examples/microvm', {
      cause: error,
    });
  }
}

const native = load();

export const { FilteredBytes } = native;

export function unavailable() {
  return native.unavailable() ?? undefined;
}

export const RECORD_BYTES = 64;

export const LAYOUT = Object.freeze({
  parameters: 0x1000,
  status: 0x2000,
  telemetry: 0x5_2000,
  control: 0xd020_0000,
  bar0: 0xd000_0000,
  bar4: 0xd010_0000,
  config: 0xd011_0000,
  hole: 0xc000_0000,
});

export function guestImage() {
  return new Uint8Array(readFileSync(fileURLToPath(new URL('./guest.bin', import.meta.url))));
}

const PHASES = ['off', 'booting', 'running', 'drained', 'stopped', 'failed'];
const SUMS = [
  'heartbeats',
  'writes',
  'reads',
  'flushes',
  'inFlight',
  'duplicates',
  'errors',
  'mismatches',
  'memoryErrors',
  'stateErrors',
  'tscErrors',
  'interrupts',
  'lostInterrupts',
  'pagesWritten',
  'doorbells',
];

/** The phase of the machine: that of the vCPU that is behind; failed where one is. */
function phaseOf(phases) {
  if (phases.some((phase) => phase === 5)) return 'failed';
  return PHASES[Math.min(...phases)] ?? 'off';
}

export class Vm extends native.Vm {
  /** What was last known, of a VM that is closed. */
  #last;

  get failure() {
    return this.#last ? this.#last.status.failure : (super.failure ?? undefined);
  }

  /** In one piece, as each value that goes to or fro takes its time, and the guest waits. */
  save() {
    const { lengths, bytes } = this.savePacked();
    let end = 0;
    return Object.fromEntries(this.sectionNames().map((name, n) => [name, bytes.subarray(end, (end += lengths[n]))]));
  }

  restore(sections) {
    const all = Object.entries(sections);
    const lengths = all.map(([, bytes]) => bytes.length);
    const bytes = new Uint8Array(lengths.reduce((sum, length) => sum + length, 0));
    let end = 0;
    for (const [, section] of all) {
      bytes.set(section, end);
      end += section.length;
    }
    this.restorePacked(
      all.map(([name]) => name),
      lengths,
      bytes,
    );
  }

  status() {
    if (this.#last) return this.#last.status;
    const { phases, vcpus, ...rest } = super.status();
    const total = Object.fromEntries(SUMS.map((name) => [name, vcpus.reduce((sum, vcpu) => sum + vcpu[name], 0n)]));
    return { phase: phaseOf(phases), ...rest, failure: this.failure, vcpus, total };
  }

  counters() {
    return this.#last?.counters ?? super.counters();
  }

  close() {
    this.#last ??= { status: this.status(), counters: super.counters() };
    super.close();
  }

  [Symbol.dispose]() {
    this.close();
  }
}
