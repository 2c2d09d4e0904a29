/** What the commands say of this very host, whatever it has, held against what node:fs and node:os find. */
import { readdirSync, readlinkSync } from 'node:fs';
import { release } from 'node:os';
import { basename, join } from 'node:path';
import test from 'ava';
import { directory, lines, serve, towline, type Ended } from '../support/cli.js';

const NOWHERE = '/nowhere/serve.sock';
const PCI = '/sys/bus/pci/devices';

function entries(path: string): string[] {
  try {
    return readdirSync(path);
  } catch {
    return [];
  }
}

/** Clear words: a code and a mend, and no trace of a stack. */
function isClear(ended: Ended): boolean {
  return !/^\s+at |node:internal|undefined|not a function|\[object/m.test(ended.out + ended.err);
}

test('list shows this host without a serving process', async (t) => {
  const ended = await towline(NOWHERE, 'list', '--json');
  t.is(ended.code, 0, ended.err);
  const [told] = lines(ended.out) as {
    controlling: unknown;
    functions: unknown;
    serving: boolean;
    host: Record<string, unknown>;
  }[];
  t.like(told, { controlling: [], functions: [], serving: false });
  t.like(told?.host['kernel'], {
    release: release(),
    iommu: entries('/sys/kernel/iommu_groups').length > 0,
    container: entries('/dev/vfio').includes('vfio'),
    iommufd: entries('/dev').includes('iommu'),
    mdev: entries('/sys/bus').includes('mdev'),
  });
  t.deepEqual(told?.host['problems'], []);
  const pfs = entries(PCI).filter((address) => entries(join(PCI, address)).includes('sriov_totalvfs'));
  const controlling = (told?.host['controlling'] ?? []) as { address: string; vfs: unknown }[];
  const found = controlling.filter((c) => c.vfs !== null);
  t.deepEqual(found.map((c) => c.address).toSorted(), pfs.toSorted());

  const shown = await towline(NOWHERE, 'list');
  t.is(shown.code, 0);
  t.true(shown.out.includes(`this host: kernel ${release()}`));
  t.regex(shown.err, /nobody serves here/);
  t.true(isClear(shown), shown.out + shown.err);
});

test('explain tells of any PCI function of this host', async (t) => {
  const [address] = entries(PCI);
  if (address === undefined) return t.fail('a machine without PCI can not show it');
  const ended = await towline(NOWHERE, 'explain', address, '--json');
  const [told] = lines(ended.out) as {
    function: { address: string; driver: string | null };
    reasons: { code: string }[];
  }[];
  t.is(told?.function.address, address);
  const bound = entries(join(PCI, address)).includes('driver')
    ? basename(readlinkSync(join(PCI, address, 'driver')))
    : null;
  t.is(told?.function.driver, bound);
  t.is(ended.code, told?.reasons.length === 0 ? 0 : 3);
  const codes = told?.reasons.map((r) => r.code) ?? [];
  t.is(codes.includes('kernel-without-iommu'), entries('/sys/kernel/iommu_groups').length === 0);
  t.is(
    codes.includes('kernel-without-vfio'),
    !entries('/dev/vfio').some((name) => name === 'vfio' || name === 'devices'),
  );
  const shown = await towline(NOWHERE, 'explain', address.slice(5));
  t.is(shown.code, ended.code);
  t.true(shown.out.startsWith(address));
  for (const code of codes) t.true(shown.out.includes(`${code}: `), code);
  t.is(shown.out.match(/^ {2}mend: /gm)?.length ?? 0, [...shown.out.matchAll(/^[a-z-]+: .*\n {2}mend: /gm)].length);
  t.true(isClear(shown), shown.out + shown.err);
});

test('what this host does not have is told by a typed error', async (t) => {
  const path = await directory(t);
  const opening = (word: string): string[] => [
    'serve',
    '--controlling',
    word,
    '--socket',
    join(path, 's.sock'),
    '--journal',
    join(path, 'journal'),
  ];
  const listed = lines((await towline(NOWHERE, 'list', '--json')).out) as { host: { kernel: { devlink: boolean } } }[];
  const devlink = listed[0]?.host.kernel.devlink;
  const cases: [args: string[], exit: number, code: string][] = [
    [['explain', 'ffff:ff:1f.7'], 5, 'ERR_TOWLINE_GONE'],
    [['explain', 'nobody'], 5, 'ERR_TOWLINE_GONE'],
    [opening('nvme:/dev/nvme999'), 5, 'ERR_TOWLINE_NOT_FOUND'],
    [opening('sriov:ffff:ff:1f.7'), 5, 'ERR_TOWLINE_NOT_FOUND'],
    [opening('sriov:what'), 2, 'ERR_TOWLINE_INVALID_ARGUMENT'],
    [opening('mdev:nobody'), 5, 'ERR_TOWLINE_NOT_FOUND'],
    [
      opening('devlink:pci/ffff:ff:1f.7'),
      devlink ? 5 : 3,
      devlink ? 'ERR_TOWLINE_NOT_FOUND' : 'ERR_TOWLINE_UNSUPPORTED',
    ],
    [['conformance', '--vfio', 'ffff:ff:1f.7', '--destructive'], 5, 'ERR_TOWLINE_NOT_FOUND'],
    [['conformance', '--vfio', 'ffff:ff:1f.7'], 3, 'ERR_TOWLINE_REFUSED'],
    [['conformance'], 2, 'ERR_TOWLINE_INVALID_ARGUMENT'],
  ];
  for (const [args, exit, code] of cases) {
    const json = await towline(NOWHERE, ...args, '--json');
    const what = `${args.join(' ')}: ${json.out}${json.err}`;
    t.is(json.code, exit, what);
    const [told] = lines(json.out) as { error: { code: string; mend: string } }[];
    t.is(told?.error.code, code, what);
    t.truthy(told?.error.mend, what);
    const shown = await towline(NOWHERE, ...args);
    t.is(shown.code, exit, what);
    t.true(shown.err.startsWith('towline: '), shown.err);
    t.true(isClear(shown), shown.err);
  }
  t.is((await towline(NOWHERE, ...opening('bogus:1'))).code, 2);
  t.deepEqual(entries(path), ['journal'], 'no socket is left');
});

test('a PCI function of this host that is not on VFIO is neither opened nor checked', async (t) => {
  const ordinary = entries(PCI).find((address) => !entries(join(PCI, address)).includes('vfio-dev'));
  if (ordinary === undefined) return t.fail('every PCI function of this machine is on VFIO');
  const ended = await towline(NOWHERE, 'conformance', '--vfio', ordinary, '--destructive', '--json');
  t.is(ended.code, 3);
  t.like(lines(ended.out)[0], { error: { code: 'ERR_TOWLINE_UNSUPPORTED' } });
});

test('a function of an embedded subsystem is no device of this host: its exposures refuse, and nothing is left', async (t) => {
  const path = await directory(t);
  const { socket } = await serve(t, path, 'a');
  for (const exposure of ['kernel', 'vfio']) {
    const refused = await towline(socket, 'provision', '--kind', 'vf', '--expose', exposure, '--json');
    t.is(refused.code, 3);
    t.like(lines(refused.out)[0], { error: { code: 'ERR_TOWLINE_EXPOSURE' } });
    const shown = await towline(socket, 'provision', '--kind', 'vf', '--expose', exposure);
    t.regex(shown.err, /this function is no device of this host/);
    t.true(isClear(shown), shown.err);
  }
  const listed = lines((await towline(socket, 'list', '--json')).out) as { functions: unknown[]; serving: boolean }[];
  t.like(listed[0], { functions: [], serving: true });
});

test('a VFIO device that is asked for by a serving process is told from its functions', async (t) => {
  const path = await directory(t);
  const { socket } = await serve(t, path, 'a');
  const [address] = entries(PCI);
  if (address === undefined) return t.fail('a machine without PCI can not show it');
  const ended = await towline(socket, 'explain', address, '--json');
  const [told] = lines(ended.out) as { function: { address: string } }[];
  t.is(told?.function.address, address, 'the host answers for what nobody serves');
  t.is((await towline(socket, 'explain', 'nobody', '--json')).code, 5);
});
