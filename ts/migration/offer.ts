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
