/** Guest RAM: ranges of guest-physical addresses, and the descriptor behind them. towline and KVM take the same ranges. */
import { LAYOUT, type RamRange } from '#native';

const MIB = 1n << 20n;
const ABOVE_4_GIB = 1n << 32n;

/**
 * Three quarters below the hole in which the device's BARs lie, the rest from 4 GiB on; both parts of one memfd.
 * @param bytes - A multiple of 8 MiB.
 */
export function ramRanges(fd: number, bytes: bigint): readonly RamRange[] {
  const wanted = (bytes / 4n) * 3n;
  const low = wanted < BigInt(LAYOUT.hole) ? wanted - (wanted % (2n * MIB)) : BigInt(LAYOUT.hole);
  return [
    { gpa: 0n, len: low, fd, fdOffset: 0n },
    { gpa: ABOVE_4_GIB, len: bytes - low, fd, fdOffset: low },
  ];
}
