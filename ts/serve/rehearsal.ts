/**
 * Faults and rates of an embedded subsystem as a serving process keeps them: a rule may name a function that does not exist yet, and
 * acts as long as the function exists.
 */
import { kSubsystem, type EmbeddedControllingFunction } from '../drivers/embedded.js';
import { NvmeFunction } from '../drivers/nvme.js';
import { nativeSync, TowlineError } from '../errors.js';
import type { ControlledFunction } from '../function/types.js';
import { setRates, type Rates } from '../rehearsal/faults.js';
import { parseFaultRule, parseRates, type FaultRule } from '../rehearsal/rule.js';
import type { RehearsalInfo } from './protocol.js';

/** The most rules of one subsystem. */
export const MAX_RULES = 64;

interface Standing {
  readonly text: string;
  readonly rule: FaultRule;
  /** While it acts: its number in the model, and on whose commands. `undefined`: on everybody's. */
  active: { readonly number: number; readonly fn: NvmeFunction | undefined } | undefined;
  /** By the times before that it acted. */
  hits: number;
}

/** See the file's comment. */
export class Rehearsal {
  readonly #controlling: EmbeddedControllingFunction;
  #rules: Standing[] = [];
  #rates: Rates = {};
  /**
   * Those that were provisioned here. Asking the controlling function for its list would wait behind the very command that a rule
   * makes hang, and the rule could never be taken away.
   */
  readonly #functions = new Set<NvmeFunction>();

  constructor(controlling: EmbeddedControllingFunction) {
    this.#controlling = controlling;
  }

  /**
   * Replaces all rules; none are left by an empty list.
   * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` names the part that is wrong. Then nothing has changed.
   */
  setFaults(texts: readonly string[]): void {
    const rules = parseRules(texts).map((rule, at): Standing => {
      return { text: texts[at] ?? '', rule, active: undefined, hits: 0 };
    });
    for (const rule of this.#rules) this.#deactivate(rule);
    this.#rules = rules;
    for (const rule of this.#rules) this.#activate(rule);
  }

  /** Replaces all rates. @throws TowlineError as {@link Rehearsal.setFaults}. */
  setRates(text: string): void {
    const rates = parseRates(text);
    setRates(this.#controlling, rates);
    this.#rates = rates;
  }

  /** A function was provisioned: the rules that name it act from now on. */
  add(fn: ControlledFunction): void {
    if (!(fn instanceof NvmeFunction)) return;
    this.#functions.add(fn);
    for (const standing of this.#rules) if (standing.active === undefined) this.#activate(standing);
  }

  /** A function went: another one may get its controller, and must not get its faults. */
  remove(fn: ControlledFunction): void {
    if (!(fn instanceof NvmeFunction)) return;
    this.#functions.delete(fn);
    for (const standing of this.#rules) if (standing.active?.fn === fn) this.#deactivate(standing);
  }

  /** What is set, and how often each rule was met. */
  info(): RehearsalInfo {
    return {
      faults: this.#rules.map((r) => ({ rule: r.text, active: r.active !== undefined, hits: this.#hits(r) })),
      rates: this.#rates,
    };
  }

  #hits({ active, hits }: Standing): number {
    return active === undefined
      ? hits
      : hits + nativeSync(() => this.#controlling[kSubsystem].faultHits(active.number));
  }

  #deactivate(standing: Standing): void {
    const { active } = standing;
    if (active === undefined) return;
    standing.hits = this.#hits(standing);
    nativeSync(() => this.#controlling[kSubsystem].removeFault(active.number));
    standing.active = undefined;
  }

  #activate(standing: Standing): void {
    const { function: word, ...rule } = standing.rule;
    let cntlid: number | undefined;
    let fn: NvmeFunction | undefined;
    if (word === 'controlling') {
      cntlid = this.#controlling.modelControllers().find((c) => c.controlling)?.cntlid;
      if (cntlid === undefined) return;
    } else if (word !== undefined) {
      fn = [...this.#functions].find((f) => f.uuid === word.toLowerCase() || f.name === word);
      if (fn === undefined) return;
      cntlid = fn.cntlid;
    }
    const json = JSON.stringify(cntlid === undefined ? rule : { ...rule, cntlid });
    standing.active = { number: nativeSync(() => this.#controlling[kSubsystem].addFault(json)), fn };
  }
}

/** Reads rules, and says what is wrong with the first one that is. */
export function parseRules(texts: readonly string[]): FaultRule[] {
  if (texts.length > MAX_RULES)
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${texts.length} faults; at most ${MAX_RULES}`);
  return texts.map(parseFaultRule);
}
