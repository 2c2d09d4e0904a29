// `npm run bench -- BENCH [OPTION…]`: builds a measuring program, runs it, and prints what it measured.
import { migrate } from './migrate.js';
import type { Result } from './result.js';
import { sameHost } from './same-host.js';
import { table } from './table.js';
import { vm } from './vm.js';

/** Each gives its results as they come. */
const benches: Readonly<Record<string, ((options: readonly string[]) => AsyncIterable<Result>) | undefined>> = {
  migrate,
  'same-host': sameHost,
  vm,
};

const usage = `usage: npm run bench -- BENCH [--json] [--smoke] [--guest-mib N] [--samples N] [GROUP…]
  migrate   a migration beside raw TCP of the same bytes; groups: passes, downtime, memory
  same-host how long a guest stands still when another process of this host takes it over, its memory passed or copied
  vm        the microvm over a slow link, and its forecasts; --rate PERCENT, --link MIB; needs /dev/kvm
  --json    one object a case and line
  --smoke   only whether it runs: small and quick, the figures mean nothing
`;

const [name = '', ...options] = process.argv.slice(2);
const bench = Object.hasOwn(benches, name) ? benches[name] : undefined;
if (bench === undefined) {
  process.stderr.write(usage);
  process.exit(name === '--help' ? 0 : 2);
}
const results: Result[] = [];
try {
  for await (const result of bench(options.filter((option) => option !== '--json'))) {
    results.push(result);
    if (options.includes('--json')) process.stdout.write(`${JSON.stringify(result)}\n`);
    else process.stderr.write(`${result.case}\n`);
  }
} catch (error) {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
  process.exit(1);
}
if (!options.includes('--json')) process.stdout.write(table(results));
