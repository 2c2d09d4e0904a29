import { readFileSync } from 'node:fs';

/** Where this process has a memfd of that name mapped, as `/proc/self/maps` tells: what native code of a VMM would know by itself. */
export function mappedAt(name: string): bigint {
  for (const line of readFileSync('/proc/self/maps', 'utf8').split('\n')) {
    if (line.includes(`/memfd:${name} `)) return BigInt(`0x${line.split('-', 1)[0] ?? ''}`);
  }
  throw new Error(`no memfd ${name} is mapped`);
}
