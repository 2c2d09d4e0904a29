import { noCounts } from './results.mjs';

/** Counts checks one by one, and goes on after a failed one. */
export class Checks {
  counts = noCounts();

  /**
   * @param {string} name
   * @param {() => unknown} check throws, or gives a promise that rejects, where the check fails
   * @returns {Promise<boolean>} whether it passed
   */
  async check(name, check) {
    try {
      await check();
      this.counts.passed += 1;
      process.stderr.write(`ok: ${name}\n`);
      return true;
    } catch (error) {
      this.counts.failed += 1;
      this.counts.problems.push(`${name}: ${error instanceof Error ? error.message : String(error)}`);
      process.stderr.write(`FAILED: ${name}\n`);
      return false;
    }
  }

  /**
   * @param {string} name
   * @param {string} reason
   */
  skip(name, reason) {
    this.counts.skipped += 1;
    this.counts.skips.push(`${name}: ${reason}`);
  }
}

/**
 * @param {boolean} condition
 * @param {string} message
 * @returns {asserts condition}
 */
export function must(condition, message) {
  if (!condition) throw new Error(message);
}
