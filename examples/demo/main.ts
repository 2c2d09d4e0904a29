/**
 * The main job: a PF, a VF and a SIOV-like function each move from one process to another while a tenant does I/O on them.
 *
 * `npm run demo -- [--json] [--kind pf|vf|siov] [--memory MiB] [--sabotage NAME]`
 *
 * Exit codes: 0 every kind is verified, 1 one is not, 2 wrong arguments.
 */
import { parseArgs } from 'node:util';
import { KINDS, type Kind, type Scale } from './protocol.js';
import { Terminal } from './terminal.js';
import { runKind } from './run.js';
import { isSabotage, SABOTAGES } from './sabotage.js';

function usage(message: string): never {
  console.error(
    `${message}\n\nusage: npm run demo -- [--json] [--kind ${KINDS.join('|')}] [--memory MiB] [--sabotage NAME]`,
  );
  console.error(`sabotages: ${SABOTAGES.join(', ')}`);
  process.exit(2);
}

function args() {
  try {
    return parseArgs({
      options: {
        json: { type: 'boolean', default: false },
        kind: { type: 'string', multiple: true },
        memory: { type: 'string', default: '512' },
        sabotage: { type: 'string' },
      },
    }).values;
  } catch (error) {
    return usage(error instanceof Error ? error.message : String(error));
  }
}

const values = args();
const memoryMiB = Number(values.memory);
if (!Number.isInteger(memoryMiB) || memoryMiB < 64 || memoryMiB > 16_384)
  usage('--memory takes whole MiB from 64 to 16384');
const { sabotage } = values;
if (sabotage !== undefined && !isSabotage(sabotage)) usage(`there is no sabotage named ${sabotage}`);
const kinds = (values.kind ?? KINDS) as Kind[];
for (const kind of kinds) if (!KINDS.includes(kind)) usage(`there is no kind named ${kind}`);

const scale: Scale = {
  memoryMiB,
  namespaceMiB: 64,
  runMs: 1000,
  iops: 4000,
  cpuDirtyBytesPerSecond: 16 << 20,
  workingSetPages: 2048,
};

const terminal = values.json ? undefined : new Terminal(process.stdout);
let verified = true;
for (const kind of kinds) {
  terminal?.begin(kind, scale);
  const line = await runKind(kind, scale, sabotage, (event) => terminal?.event(event));
  verified &&= line.verified;
  if (terminal) terminal.end(line);
  else console.log(JSON.stringify(line));
}
terminal?.close(verified);
process.exit(verified ? 0 : 1);
