// An NVMe controller of the guest, by Linux's own tools.
import { execFile, spawn } from 'node:child_process';
import { readFile, readdir } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

/** Runs a program; its promise fails where the program does. */
export const run = promisify(execFile);

/** A PCI function in sysfs. */
export const sys = (address: string): string => `/sys/bus/pci/devices/${address}`;

/** Asks until it is so. */
export async function until<T>(what: string, look: () => Promise<T | undefined>, seconds = 60): Promise<T> {
  for (let n = 0; n < seconds * 10; n++) {
    const found = await look().catch(() => undefined);
    if (found !== undefined) return found;
    await sleep(100);
  }
  throw new Error(`no ${what} within ${seconds} s`);
}

/** The controller's name, `nvme0`, once it is live. */
export const controllerOf = (address: string): Promise<string> =>
  until(`live controller at ${address}`, async () => {
    const [name] = await readdir(`${sys(address)}/nvme`);
    const state = await readFile(`${sys(address)}/nvme/${name}/state`, 'utf8');
    return state.trim() === 'live' ? name : undefined;
  });

/** The device file of its one namespace. */
export const diskOf = (address: string): Promise<string> =>
  until(`namespace of ${address}`, async () => {
    const controller = await controllerOf(address);
    const names = await readdir(`${sys(address)}/nvme/${controller}`);
    // With multipath the disk is nvmeXn1, the controller's own path to it nvmeXcYn1.
    const name = names.find((entry) => /^nvme\d+(c\d+)?n\d+$/.test(entry))?.replace(/c\d+/, '');
    return name === undefined ? undefined : `/dev/${name}`;
  });

export async function nvme(...args: string[]): Promise<Record<string, unknown>> {
  const { stdout } = await run('nvme', [...args, '-o', 'json']);
  return JSON.parse(stdout) as Record<string, unknown>;
}

/** fio writes a pattern with checksums, or reads it back and checks these. */
const fioArgs = (file: string, how: 'write' | 'read' | 'load', seed: number): string[] => [
  '--name=v',
  `--filename=${file}`,
  '--bs=4k',
  '--size=8M',
  '--ioengine=libaio',
  '--iodepth=16',
  '--direct=1',
  '--verify=crc32c',
  '--verify_fatal=1',
  `--randseed=${seed}`,
  ...(how === 'load' ? ['--rw=randwrite', '--verify_backlog=128', '--time_based=1', '--runtime=12'] : [`--rw=${how}`]),
];
export const fio = (file: string, how: 'write' | 'read', seed = 7): Promise<unknown> =>
  run('fio', fioArgs(file, how, seed));

/** fio in the background; gives how it ends. */
export function load(file: string): Promise<{ code: number | null; output: string }> {
  const child = spawn('fio', fioArgs(file, 'load', 11), { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text) => (output += text));
  return new Promise((resolve) => child.on('close', (code) => resolve({ code, output })));
}

/** What nvme-cli shows of the secondary controllers. */
export async function secondaries(
  name: string,
): Promise<{ id: number; online: boolean; vf: number; queues: number; vectors: number }[]> {
  const list = (await nvme('list-secondary', `/dev/${name}`)) as { 'secondary-controllers': Record<string, number>[] };
  return list['secondary-controllers'].map((entry) => ({
    id: entry['secondary-controller-identifier'] ?? -1,
    online: entry['secondary-controller-state'] === 1,
    vf: entry['virtual-function-number'] ?? -1,
    queues: entry['num-virtual-queues'] ?? -1,
    vectors: entry['num-virtual-interrupts'] ?? -1,
  }));
}

/** Prints what the kernel said about NVMe, for who reads the console. */
export async function tellLog(): Promise<void> {
  const { stdout } = await run('sh', ['-c', 'dmesg | grep -i -e nvme -e pcieport | tail -60 || true']);
  // Whole lines: what is left open would swallow the next line of TAP.
  process.stderr.write(`${stdout.trimEnd().replaceAll(/^/gm, '# ')}\n`);
}
