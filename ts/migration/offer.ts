import { TowlineError } from '../errors.js';
import type { MemoryRange } from '../function/channel.js';
import type { Fact, FunctionDescriptor } from '../function/types.js';

/** One reason why a destination can't take what is offered. Every one is told at once, before anything stops. */
export interface Mismatch {
  /** `<function name>: <fact>` or `memory`, `functions`, `page-size`, `version`. */
  code: string;
  message: string;
  /** Why it matters, or what would mend it. */
  mend: string;
}

/** What is offered for one function. */
export interface OfferedFunction {
  uuid: string;
  name: string;
  descriptor: FunctionDescriptor;
}

/** What this side has for one function. */
export interface LocalFunction {
  uuid: string;
  name: string;
  descriptor: FunctionDescriptor;
}

function satisfies(offered: Fact, local: Fact | undefined): boolean {
  if (local === undefined) return false;
  const a = offered.value;
  const b = local.value;
  switch (offered.rule) {
    case 'equal':
      return Array.isArray(a) && Array.isArray(b)
        ? a.length === b.length && a.every((v: unknown, i) => v === b[i])
        : a === b;
    case 'at-least':
      return typeof a === 'number' && typeof b === 'number' && b >= a;
    case 'superset':
      return Array.isArray(a) && Array.isArray(b) && a.every((v: unknown) => (b as unknown[]).includes(v));
    case 'intersects':
      return Array.isArray(a) && Array.isArray(b) && a.some((v: unknown) => (b as unknown[]).includes(v));
    default:
      // A rule of a newer version: it can't be checked, so it isn't satisfied.
      return false;
  }
}

const show = (value: unknown): string => JSON.stringify(value) ?? 'nothing';

/** Every fact of `offered` that `local` does not satisfy. */
export function compareDescriptors(name: string, offered: FunctionDescriptor, local: FunctionDescriptor): Mismatch[] {
  return Object.entries(offered)
    .filter(([key, fact]) => !satisfies(fact, local[key]))
    .map(([key, fact]) => ({
      code: `${name}: ${key}`,
      message: `${key} is ${show(fact.value)} at the source and ${show(local[key]?.value)} here (rule: ${fact.rule})`,
      mend: fact.why,
    }));
}

/** Pairs offered functions with local ones, by order, and lists every mismatch. */
export function compareFunctions(offered: readonly OfferedFunction[], local: readonly LocalFunction[]): Mismatch[] {
  const mismatches: Mismatch[] = [];
  if (offered.length !== local.length) {
    mismatches.push({
      code: 'functions',
      message: `${offered.length} function(s) are offered, ${local.length} wait here`,
      mend: 'provision as many functions at the destination as the guest has at the source, in the same order',
    });
  }
  for (const [i, function_] of offered.entries()) {
    const mine = local[i];
    if (mine) mismatches.push(...compareDescriptors(function_.name, function_.descriptor, mine.descriptor));
  }
  return mismatches;
}

/** Compares memory layouts: the destination needs the same ranges. */
export function compareMemory(
  offered: readonly { gpa: string; len: string }[],
  local: readonly MemoryRange[],
): Mismatch[] {
  const a = offered.map((r) => `${r.gpa}+${r.len}`);
  const b = local.map((r) => `${r.gpa}+${r.len}`);
  if (a.length === b.length && a.every((v, i) => v === b[i])) return [];
  return [
    {
      code: 'memory',
      message: `guest memory is [${a.join(', ')}] at the source and [${b.join(', ')}] here (address+length in bytes)`,
      mend: 'register the same guest-physical ranges at the destination',
    },
  ];
}

/** The most functions in one offer, and facts of one function; longer is a mistake or an attack. */
const MOST_FUNCTIONS = 256;
const MOST_FACTS = 64;
const MOST_CHARS = 255;

const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function text(value: unknown, what: string, most = MOST_CHARS): string {
  // What a peer names is shown to people: nothing in it may steer their terminal.
  if (typeof value === 'string' && value.length <= most && !/\p{Cc}/u.test(value)) return value;
  throw new TowlineError(
    'ERR_TOWLINE_PROTOCOL',
    `the offer's ${what} is no text of at most ${most} printable characters`,
  );
}

function parseFact(value: unknown, name: string): Fact {
  const scalar = (v: unknown) => typeof v === 'string' || typeof v === 'number' || typeof v === 'boolean';
  if (isRecord(value)) {
    const v = value['value'];
    const list = Array.isArray(v) && v.length <= 4096 && v.every((x) => typeof x === 'string' || typeof x === 'number');
    if (scalar(v) || list) {
      return {
        value: v as Fact['value'],
        rule: text(value['rule'], `rule of ${name}`) as Fact['rule'],
        why: text(value['why'], `reason of ${name}`, 1024),
      };
    }
  }
  throw new TowlineError('ERR_TOWLINE_PROTOCOL', `the offer's fact ${name} has not its documented shape`);
}

/**
 * The functions of an offer as a peer sent it; nothing in it is trusted.
 * @throws TowlineError `ERR_TOWLINE_PROTOCOL` names what has not its documented shape.
 */
export function parseOfferedFunctions(descriptor: unknown): OfferedFunction[] {
  const functions = isRecord(descriptor) ? descriptor['functions'] : undefined;
  if (!Array.isArray(functions) || functions.length === 0 || functions.length > MOST_FUNCTIONS) {
    throw new TowlineError('ERR_TOWLINE_PROTOCOL', `the offer does not list 1 to ${MOST_FUNCTIONS} functions`);
  }
  return functions.map((f: unknown) => {
    const facts = isRecord(f) ? f['descriptor'] : undefined;
    if (!isRecord(f) || !isRecord(facts) || Object.keys(facts).length > MOST_FACTS) {
      throw new TowlineError('ERR_TOWLINE_PROTOCOL', 'a function of the offer has not its documented shape');
    }
    const entries = Object.entries(facts).map(([name, value]) => [text(name, 'fact'), parseFact(value, name)] as const);
    return { uuid: text(f['uuid'], 'UUID'), name: text(f['name'], 'name'), descriptor: Object.fromEntries(entries) };
  });
}
