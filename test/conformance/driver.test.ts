import test from 'ava';
import { conformDriver, type CheckResult } from '#towline/conformance/index.js';
import type { ControllingDriver } from '#towline/drivers/driver.js';
import { EmbeddedDriver } from '#towline/drivers/embedded.js';
import { NvmeControllingFunction } from '#towline/drivers/nvme.js';
import { TowlineError } from '#towline/errors.js';
import { FakeNvme } from '../support/fake-nvme.js';

function driver(spoil: (fake: FakeNvme) => void = () => undefined): ControllingDriver {
  return {
    name: 'fake',
    discover: async () => [{ address: 'fake:0', description: 'fake', reasons: [] }],
    open: async (address) => {
      if (address !== 'fake:0') throw new TowlineError('ERR_TOWLINE_NOT_FOUND', address);
      const fake = new FakeNvme();
      spoil(fake);
      return new NvmeControllingFunction(fake);
    },
  };
}

async function failed(subject: ControllingDriver, address: string): Promise<CheckResult[]> {
  const found: CheckResult[] = [];
  for await (const result of conformDriver({ driver: subject, address }))
    if (result.outcome !== 'passed') found.push(result);
  return found;
}

test('the nvme driver over a backend in plain TypeScript passes', async (t) => {
  t.deepEqual(await failed(driver(), 'fake:0'), []);
});

test('the embedded driver passes', async (t) => {
  t.deepEqual(await failed(new EmbeddedDriver([{ name: 'kit' }]), 'embedded:kit'), []);
});

test('a driver that does not take functions back fails', async (t) => {
  const results = await failed(
    driver((fake) => {
      fake.removeSiov = async () => {
        throw new TowlineError('ERR_TOWLINE_DEVICE', 'it stays');
      };
    }),
    'fake:0',
  );
  t.true(results.some((r) => r.check === 'driver/lifecycle' && r.outcome === 'failed'));
});

test('a driver that opens anything fails', async (t) => {
  const good = driver();
  const results = await failed({ name: good.name, discover: good.discover, open: () => good.open('fake:0') }, 'fake:0');
  t.deepEqual(
    results.map((r) => r.check),
    ['driver/unknown-address'],
  );
});
