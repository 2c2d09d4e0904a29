/**
 * Faults and rates as people write them on a command line: `opcode=write,nth=3,action=delay:50ms`, `save=100MiB/s`.
 */
import { TowlineError } from '../errors.js';
import type { Fault, FaultAction, Rates } from './faults.js';
import { adminOpcodes, ioOpcodes, statusNames } from './names.js';

/** A {@link Fault} that names its function in words; the function need not exist yet. */
export interface FaultRule extends Omit<Fault, 'cntlid'> {
  /** UUID or name of the function whose commands are meant; `controlling` for the controlling function. Every one where left out. */
  function?: string | undefined;
}

const MAX_RULE_CHARS = 512;
const MAX_U32 = 0xffff_ffff;
/** The longest delay, in milliseconds: what takes longer than an hour is a hang. */
const MAX_DELAY_MS = 3_600_000;
/** Do Not Retry, where nvme-cli and Linux put it in a status. */
const DNR = 0x4000;

/** Tells of one part of a text that is wrong. */
class Part {
  readonly key: string;
  readonly value: string;
  readonly #what: string;
  readonly #text: string;

  constructor(what: string, text: string) {
    this.#what = what;
    this.#text = text;
    const at = text.indexOf('=');
    this.key = at < 0 ? text : text.slice(0, at);
    this.value = at < 0 ? '' : text.slice(at + 1);
    if (at < 0) this.fail('is not NAME=VALUE');
    if (this.value === '') this.fail('has no value');
  }

  fail(why: string): never {
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${this.#what}: "${this.#text}" ${why}`, {
      details: { part: this.#text },
    });
  }

  number(text: string, least: number, most: number): number {
    const value = Number(text);
    if (!/^(?:0x[0-9a-f]+|\d+)$/i.test(text) || !Number.isSafeInteger(value) || value < least || value > most)
      this.fail(`is no whole number from ${least} to ${most}`);
    return value;
  }

  /** Milliseconds, in fractions where they are wanted. */
  duration(text: string): number {
    const match = /^(\d{1,9}(?:\.\d{1,6})?)(us|ms|s)$/.exec(text);
    const unit = { us: 0.001, ms: 1, s: 1000 }[match?.[2] ?? ''];
    if (match?.[1] === undefined || unit === undefined) this.fail('is no time: write 500us, 50ms or 2s');
    const ms = Number(match[1]) * unit;
    if (ms > MAX_DELAY_MS) this.fail('is longer than an hour');
    return ms;
  }
}

function partsOf(what: string, text: string): Part[] {
  if (text.length > MAX_RULE_CHARS) {
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${what}: longer than ${MAX_RULE_CHARS} characters`);
  }
  const parts = text.split(',').map((part) => new Part(what, part.trim()));
  for (const [at, part] of parts.entries()) {
    if (parts.findIndex((p) => p.key === part.key) !== at) part.fail('is there twice');
  }
  return parts;
}

function readOpcode(part: Part): { opcode: number; queue?: 'admin' | 'io' } {
  const { value } = part;
  if (Object.hasOwn(ioOpcodes, value)) return { opcode: ioOpcodes[value as keyof typeof ioOpcodes], queue: 'io' };
  if (Object.hasOwn(adminOpcodes, value))
    return { opcode: adminOpcodes[value as keyof typeof adminOpcodes], queue: 'admin' };
  if (/^\d/.test(value)) return { opcode: part.number(value, 0, 0xff) };
  return part.fail(
    `is no opcode: a number, or ${[...Object.keys(ioOpcodes), ...Object.keys(adminOpcodes)].join(', ')}`,
  );
}

function readAction(part: Part): FaultAction {
  const at = part.value.indexOf(':');
  const kind = at < 0 ? part.value : part.value.slice(0, at);
  const value = at < 0 ? undefined : part.value.slice(at + 1);
  switch (kind) {
    case 'drop-completion':
    case 'repeat':
    case 'hang':
      return value === undefined ? { kind } : part.fail(`has a value that ${kind} does not take`);
    case 'delay': {
      const ms = part.duration(value ?? '');
      return Number.isInteger(ms) ? { kind, ms } : part.fail('is no whole number of milliseconds');
    }
    case 'status': {
      const status = Object.hasOwn(statusNames, value ?? '')
        ? statusNames[value as keyof typeof statusNames]
        : /^\d/.test(value ?? '')
          ? part.number(value ?? '', 1, DNR | 0x7ff)
          : part.fail(`is no status: a number (SCT << 8 | SC), or ${Object.keys(statusNames).join(', ')}`);
      if ((status & ~(DNR | 0x7ff)) !== 0 || (status & 0x7ff) === 0)
        part.fail('is no failing status: SCT << 8 | SC, 0x1 to 0x7ff, and 0x4000 for do-not-retry');
      return { kind, sct: (status >> 8) & 7, sc: status & 0xff, dnr: (status & DNR) !== 0 };
    }
    default:
      return part.fail('is no action: status:CODE, delay:TIME, drop-completion, repeat or hang');
  }
}

/**
 * Reads a rule: `NAME=VALUE` pairs, with commas between them.
 *
 * - `function`: UUID or name; `controlling` is the controlling function, to which the commands of a migration go. Default: every one.
 * - `queue`: `admin` or `io`. Default: as the opcode says; where that is a number, or left out, both, each counted by itself.
 * - `opcode`: a name (`write`, `migration-receive`) or a number (`0x42`). Default: every one.
 * - `nth`: the first command that is hit, from 1 (default) on.
 * - `count`: how many in a row are hit; 0 is all that follow. Default: 1.
 * - `action`: `status:CODE` (a name, or SCT << 8 | SC as nvme-cli prints it, 0x4000 being do-not-retry), `delay:50ms`,
 *   `drop-completion`, `repeat` or `hang`.
 *
 * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` names the part that is wrong, also in `details.part`.
 */
export function parseFaultRule(text: string): FaultRule {
  const rule: Partial<FaultRule> = {};
  let named: Part | undefined;
  let queueOfName: 'admin' | 'io' | undefined;
  for (const part of partsOf('fault', text)) {
    switch (part.key) {
      case 'function':
        rule.function = part.value;
        break;
      case 'queue':
        rule.queue = part.value === 'admin' || part.value === 'io' ? part.value : part.fail('is neither admin nor io');
        break;
      case 'opcode': {
        const { opcode, queue } = readOpcode(part);
        rule.opcode = opcode;
        [named, queueOfName] = [part, queue];
        break;
      }
      case 'nth':
        rule.nth = part.number(part.value, 1, MAX_U32);
        break;
      case 'count':
        rule.count = part.number(part.value, 0, MAX_U32);
        break;
      case 'action':
        rule.action = readAction(part);
        break;
      default:
        part.fail('is unknown: there is function, queue, opcode, nth, count and action');
    }
  }
  if (queueOfName !== undefined) {
    if (rule.queue !== undefined && rule.queue !== queueOfName)
      named?.fail(`is a command of the ${queueOfName === 'io' ? 'I/O' : 'admin'} queues, and queue says ${rule.queue}`);
    rule.queue = queueOfName;
  }
  const { action } = rule;
  if (action === undefined)
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `fault "${text}": action is missing`, {
      details: { part: 'action' },
    });
  return { ...rule, action };
}

const SPEED_UNITS: Readonly<Record<string, number>> = { '': 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 };

function readSpeed(part: Part): number {
  const match = /^(\d{1,12})([kmgt]?)(?:i?b)?(?:\/s)?$/i.exec(part.value);
  const speed = Number(match?.[1]) * (SPEED_UNITS[(match?.[2] ?? '').toLowerCase()] ?? Number.NaN);
  if (!Number.isSafeInteger(speed) || speed === 0) part.fail('is no speed: write 100MiB/s, 64K/s or 1048576');
  return speed;
}

/**
 * Reads rates: `NAME=VALUE` pairs with commas between them. `save` and `load` are speeds at which device state is saved and loaded
 * (`100MiB/s`, powers of 1024); `save-latency`, `load-latency` and `io-latency` are times (`20ms`). `none`: as fast as it can be.
 *
 * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` names the part that is wrong, also in `details.part`.
 */
export function parseRates(text: string): Rates {
  const rates: Rates = {};
  if (text.trim() === 'none') return rates;
  const wholeMs = (part: Part): number => {
    const ms = part.duration(part.value);
    return Number.isInteger(ms) ? ms : part.fail('is no whole number of milliseconds');
  };
  for (const part of partsOf('rate', text)) {
    switch (part.key) {
      case 'save':
        rates.saveBytesPerSecond = readSpeed(part);
        break;
      case 'load':
        rates.loadBytesPerSecond = readSpeed(part);
        break;
      case 'save-latency':
        rates.saveLatencyMs = wholeMs(part);
        break;
      case 'load-latency':
        rates.loadLatencyMs = wholeMs(part);
        break;
      case 'io-latency':
        rates.ioLatencyMs = part.duration(part.value);
        break;
      default:
        part.fail('is unknown: there is save, load, save-latency, load-latency and io-latency');
    }
  }
  return rates;
}
