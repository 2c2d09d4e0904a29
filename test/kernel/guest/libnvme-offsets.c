/*
 * Prints the layouts of NVMe structures, opcodes and command dwords as libnvme's headers (1.13 or newer) have them, in the words of
 * crates/nvme: an independent reading of the specification for its tables. Compared with ours by crates/nvme/examples/vm_layout.rs.
 *
 * `STRUCTURE size`, `STRUCTURE.FIELD offset size`, `opcode NAME number`, `command NAME cdw10 cdw11`.
 */
#include <libnvme.h>
#include <stddef.h>
#include <stdio.h>

#define SIZE(ours, type) printf("%s %zu\n", ours, sizeof(type))
#define FIELD(ours, field, type, theirs) \
  printf("%s.%s %zu %zu\n", ours, field, offsetof(type, theirs), sizeof(((type *)0)->theirs))
#define OPCODE(ours, theirs) printf("opcode %s 0x%x\n", ours, (unsigned)(theirs))
#define COMMAND(ours, cdw10, cdw11) printf("command %s 0x%x 0x%x\n", ours, (unsigned)(cdw10), (unsigned)(cdw11))
#define SET(name, value) (((unsigned)(value) & name##_MASK) << name##_SHIFT)

/* The arguments of the commands: each number once, so that mixed up fields show. */
enum { CNTLID = 0x1234, VERSION_INDEX = 0x56, UUID_INDEX = 0x78, UUID_PARAMETER = 0x9a, QUEUE = 0x4321 };

int main(void) {
  SIZE("IdentifyController", struct nvme_id_ctrl);
  FIELD("IdentifyController", "vid", struct nvme_id_ctrl, vid);
  FIELD("IdentifyController", "ssvid", struct nvme_id_ctrl, ssvid);
  FIELD("IdentifyController", "sn", struct nvme_id_ctrl, sn);
  FIELD("IdentifyController", "mn", struct nvme_id_ctrl, mn);
  FIELD("IdentifyController", "fr", struct nvme_id_ctrl, fr);
  FIELD("IdentifyController", "rab", struct nvme_id_ctrl, rab);
  FIELD("IdentifyController", "ieee", struct nvme_id_ctrl, ieee);
  FIELD("IdentifyController", "cmic", struct nvme_id_ctrl, cmic);
  FIELD("IdentifyController", "mdts", struct nvme_id_ctrl, mdts);
  FIELD("IdentifyController", "cntlid", struct nvme_id_ctrl, cntlid);
  FIELD("IdentifyController", "ver", struct nvme_id_ctrl, ver);
  FIELD("IdentifyController", "rtd3r", struct nvme_id_ctrl, rtd3r);
  FIELD("IdentifyController", "rtd3e", struct nvme_id_ctrl, rtd3e);
  FIELD("IdentifyController", "oaes", struct nvme_id_ctrl, oaes);
  FIELD("IdentifyController", "ctratt", struct nvme_id_ctrl, ctratt);
  FIELD("IdentifyController", "cntrltype", struct nvme_id_ctrl, cntrltype);
  FIELD("IdentifyController", "fguid", struct nvme_id_ctrl, fguid);
  FIELD("IdentifyController", "crdt1", struct nvme_id_ctrl, crdt1);
  FIELD("IdentifyController", "oacs", struct nvme_id_ctrl, oacs);
  FIELD("IdentifyController", "acl", struct nvme_id_ctrl, acl);
  FIELD("IdentifyController", "aerl", struct nvme_id_ctrl, aerl);
  FIELD("IdentifyController", "frmw", struct nvme_id_ctrl, frmw);
  FIELD("IdentifyController", "lpa", struct nvme_id_ctrl, lpa);
  FIELD("IdentifyController", "elpe", struct nvme_id_ctrl, elpe);
  FIELD("IdentifyController", "npss", struct nvme_id_ctrl, npss);
  FIELD("IdentifyController", "apsta", struct nvme_id_ctrl, apsta);
  FIELD("IdentifyController", "wctemp", struct nvme_id_ctrl, wctemp);
  FIELD("IdentifyController", "cctemp", struct nvme_id_ctrl, cctemp);
  FIELD("IdentifyController", "hmpre", struct nvme_id_ctrl, hmpre);
  FIELD("IdentifyController", "tnvmcap", struct nvme_id_ctrl, tnvmcap);
  FIELD("IdentifyController", "unvmcap", struct nvme_id_ctrl, unvmcap);
  FIELD("IdentifyController", "kas", struct nvme_id_ctrl, kas);
  FIELD("IdentifyController", "sanicap", struct nvme_id_ctrl, sanicap);
  FIELD("IdentifyController", "anacap", struct nvme_id_ctrl, anacap);
  FIELD("IdentifyController", "sqes", struct nvme_id_ctrl, sqes);
  FIELD("IdentifyController", "cqes", struct nvme_id_ctrl, cqes);
  FIELD("IdentifyController", "maxcmd", struct nvme_id_ctrl, maxcmd);
  FIELD("IdentifyController", "nn", struct nvme_id_ctrl, nn);
  FIELD("IdentifyController", "oncs", struct nvme_id_ctrl, oncs);
  FIELD("IdentifyController", "fuses", struct nvme_id_ctrl, fuses);
  FIELD("IdentifyController", "fna", struct nvme_id_ctrl, fna);
  FIELD("IdentifyController", "vwc", struct nvme_id_ctrl, vwc);
  FIELD("IdentifyController", "awun", struct nvme_id_ctrl, awun);
  FIELD("IdentifyController", "awupf", struct nvme_id_ctrl, awupf);
  FIELD("IdentifyController", "sgls", struct nvme_id_ctrl, sgls);
  FIELD("IdentifyController", "mnan", struct nvme_id_ctrl, mnan);
  FIELD("IdentifyController", "maxdna", struct nvme_id_ctrl, maxdna);
  FIELD("IdentifyController", "maxcna", struct nvme_id_ctrl, maxcna);
  FIELD("IdentifyController", "cmmrtd", struct nvme_id_ctrl, cmmrtd);
  FIELD("IdentifyController", "nmmrtd", struct nvme_id_ctrl, nmmrtd);
  FIELD("IdentifyController", "minmrtg", struct nvme_id_ctrl, minmrtg);
  FIELD("IdentifyController", "maxmrtg", struct nvme_id_ctrl, maxmrtg);
  FIELD("IdentifyController", "trattr", struct nvme_id_ctrl, trattr);
  FIELD("IdentifyController", "mcudmq", struct nvme_id_ctrl, mcudmq);
  FIELD("IdentifyController", "mnsudmq", struct nvme_id_ctrl, mnsudmq);
  FIELD("IdentifyController", "mcmr", struct nvme_id_ctrl, mcmr);
  FIELD("IdentifyController", "nmcmr", struct nvme_id_ctrl, nmcmr);
  FIELD("IdentifyController", "mcdqpc", struct nvme_id_ctrl, mcdqpc);
  FIELD("IdentifyController", "subnqn", struct nvme_id_ctrl, subnqn);
  FIELD("IdentifyController", "psd0_max_power", struct nvme_id_ctrl, psd[0].mp);
  SIZE("IdentifyNamespace", struct nvme_id_ns);
  FIELD("IdentifyNamespace", "nsze", struct nvme_id_ns, nsze);
  FIELD("IdentifyNamespace", "ncap", struct nvme_id_ns, ncap);
  FIELD("IdentifyNamespace", "nuse", struct nvme_id_ns, nuse);
  FIELD("IdentifyNamespace", "nsfeat", struct nvme_id_ns, nsfeat);
  FIELD("IdentifyNamespace", "nlbaf", struct nvme_id_ns, nlbaf);
  FIELD("IdentifyNamespace", "flbas", struct nvme_id_ns, flbas);
  FIELD("IdentifyNamespace", "mc", struct nvme_id_ns, mc);
  FIELD("IdentifyNamespace", "dpc", struct nvme_id_ns, dpc);
  FIELD("IdentifyNamespace", "dps", struct nvme_id_ns, dps);
  FIELD("IdentifyNamespace", "nmic", struct nvme_id_ns, nmic);
  FIELD("IdentifyNamespace", "rescap", struct nvme_id_ns, rescap);
  FIELD("IdentifyNamespace", "dlfeat", struct nvme_id_ns, dlfeat);
  FIELD("IdentifyNamespace", "nvmcap", struct nvme_id_ns, nvmcap);
  FIELD("IdentifyNamespace", "nguid", struct nvme_id_ns, nguid);
  FIELD("IdentifyNamespace", "eui64", struct nvme_id_ns, eui64);
  FIELD("IdentifyNamespace", "lbaf0", struct nvme_id_ns, lbaf[0]);
  SIZE("PrimaryCapabilities", struct nvme_primary_ctrl_cap);
  FIELD("PrimaryCapabilities", "cntlid", struct nvme_primary_ctrl_cap, cntlid);
  FIELD("PrimaryCapabilities", "portid", struct nvme_primary_ctrl_cap, portid);
  FIELD("PrimaryCapabilities", "crt", struct nvme_primary_ctrl_cap, crt);
  FIELD("PrimaryCapabilities", "vqfrt", struct nvme_primary_ctrl_cap, vqfrt);
  FIELD("PrimaryCapabilities", "vqrfa", struct nvme_primary_ctrl_cap, vqrfa);
  FIELD("PrimaryCapabilities", "vqrfap", struct nvme_primary_ctrl_cap, vqrfap);
  FIELD("PrimaryCapabilities", "vqprt", struct nvme_primary_ctrl_cap, vqprt);
  FIELD("PrimaryCapabilities", "vqfrsm", struct nvme_primary_ctrl_cap, vqfrsm);
  FIELD("PrimaryCapabilities", "vqgran", struct nvme_primary_ctrl_cap, vqgran);
  FIELD("PrimaryCapabilities", "vifrt", struct nvme_primary_ctrl_cap, vifrt);
  FIELD("PrimaryCapabilities", "virfa", struct nvme_primary_ctrl_cap, virfa);
  FIELD("PrimaryCapabilities", "virfap", struct nvme_primary_ctrl_cap, virfap);
  FIELD("PrimaryCapabilities", "viprt", struct nvme_primary_ctrl_cap, viprt);
  FIELD("PrimaryCapabilities", "vifrsm", struct nvme_primary_ctrl_cap, vifrsm);
  FIELD("PrimaryCapabilities", "vigran", struct nvme_primary_ctrl_cap, vigran);
  SIZE("SecondaryController", struct nvme_secondary_ctrl);
  FIELD("SecondaryController", "scid", struct nvme_secondary_ctrl, scid);
  FIELD("SecondaryController", "pcid", struct nvme_secondary_ctrl, pcid);
  FIELD("SecondaryController", "scs", struct nvme_secondary_ctrl, scs);
  FIELD("SecondaryController", "vfn", struct nvme_secondary_ctrl, vfn);
  FIELD("SecondaryController", "nvq", struct nvme_secondary_ctrl, nvq);
  FIELD("SecondaryController", "nvi", struct nvme_secondary_ctrl, nvi);
  SIZE("StateHeader", struct nvme_lm_controller_state_data_header);
  FIELD("StateHeader", "version", struct nvme_lm_controller_state_data_header, ver);
  FIELD("StateHeader", "attributes", struct nvme_lm_controller_state_data_header, csattr);
  FIELD("StateHeader", "nvme_dwords", struct nvme_lm_controller_state_data_header, nvmecss);
  FIELD("StateHeader", "vendor_dwords", struct nvme_lm_controller_state_data_header, vss);
  SIZE("NvmeStateHeader", struct nvme_lm_nvme_controller_state_data_header);
  FIELD("NvmeStateHeader", "version", struct nvme_lm_nvme_controller_state_data_header, ver);
  FIELD("NvmeStateHeader", "submission_queues", struct nvme_lm_nvme_controller_state_data_header, niosq);
  FIELD("NvmeStateHeader", "completion_queues", struct nvme_lm_nvme_controller_state_data_header, niocq);
  SIZE("SqState", struct nvme_lm_io_submission_queue_data);
  FIELD("SqState", "prp1", struct nvme_lm_io_submission_queue_data, iosqprp1);
  FIELD("SqState", "size", struct nvme_lm_io_submission_queue_data, iosqqsize);
  FIELD("SqState", "qid", struct nvme_lm_io_submission_queue_data, iosqqid);
  FIELD("SqState", "cqid", struct nvme_lm_io_submission_queue_data, iosqcqid);
  FIELD("SqState", "attributes", struct nvme_lm_io_submission_queue_data, iosqa);
  FIELD("SqState", "head", struct nvme_lm_io_submission_queue_data, iosqhp);
  FIELD("SqState", "tail", struct nvme_lm_io_submission_queue_data, iosqtp);
  SIZE("CqState", struct nvme_lm_io_completion_queue_data);
  FIELD("CqState", "prp1", struct nvme_lm_io_completion_queue_data, iocqprp1);
  FIELD("CqState", "size", struct nvme_lm_io_completion_queue_data, iocqqsize);
  FIELD("CqState", "qid", struct nvme_lm_io_completion_queue_data, iocqqid);
  FIELD("CqState", "head", struct nvme_lm_io_completion_queue_data, iocqhp);
  FIELD("CqState", "tail", struct nvme_lm_io_completion_queue_data, iocqtp);
  FIELD("CqState", "attributes", struct nvme_lm_io_completion_queue_data, iocqa);
  OPCODE("identify", nvme_admin_identify);
  OPCODE("get_log_page", nvme_admin_get_log_page);
  OPCODE("set_features", nvme_admin_set_features);
  OPCODE("get_features", nvme_admin_get_features);
  OPCODE("namespace_attachment", nvme_admin_ns_attach);
  OPCODE("virtualization_management", nvme_admin_virtual_mgmt);
  OPCODE("track_send", nvme_admin_track_send);
  OPCODE("track_receive", nvme_admin_track_receive);
  OPCODE("migration_send", nvme_admin_migration_send);
  OPCODE("migration_receive", nvme_admin_migration_receive);
  OPCODE("controller_data_queue", nvme_admin_ctrl_data_queue);
  OPCODE("cns_primary_capabilities", NVME_IDENTIFY_CNS_PRIMARY_CTRL_CAP);
  OPCODE("cns_secondary_controllers", NVME_IDENTIFY_CNS_SECONDARY_CTRL_LIST);
  OPCODE("cns_controller_state_formats", NVME_IDENTIFY_CNS_SUPPORTED_CTRL_STATE_FORMATS);
  OPCODE("oacs_virtualization_management", NVME_CTRL_OACS_VIRT_MGMT);
  OPCODE("oacs_live_migration", NVME_CTRL_OACS_HMLM);

  COMMAND("suspend_notification",
          SET(NVME_LM_MIGRATION_SEND_SEL, NVME_LM_SEL_SUSPEND),
          SET(NVME_LM_STYPE, NVME_LM_STYPE_SUSPEND_NOTIFICATION) | SET(NVME_LM_SUSPEND_CNTLID, CNTLID));
  COMMAND("suspend",
          SET(NVME_LM_MIGRATION_SEND_SEL, NVME_LM_SEL_SUSPEND),
          SET(NVME_LM_STYPE, NVME_LM_STYPE_SUSPEND) | SET(NVME_LM_SUSPEND_CNTLID, CNTLID));
  COMMAND("suspend_delete_queue",
          SET(NVME_LM_MIGRATION_SEND_SEL, NVME_LM_SEL_SUSPEND),
          NVME_LM_DUDMQ | SET(NVME_LM_STYPE, NVME_LM_STYPE_SUSPEND) | SET(NVME_LM_SUSPEND_CNTLID, CNTLID));
  COMMAND("resume", SET(NVME_LM_MIGRATION_SEND_SEL, NVME_LM_SEL_RESUME), SET(NVME_LM_RESUME_CNTLID, CNTLID));
  static const struct {
    const char *name;
    unsigned sequence;
  } parts[] = {
      {"set_state_middle", NVME_LM_SEQIND_NOT_FIRST_NOT_LAST},
      {"set_state_first", NVME_LM_SEQIND_FIRST},
      {"set_state_last", NVME_LM_SEQIND_LAST},
      {"set_state_only", NVME_LM_SEQIND_ENTIRE},
  };
  for (size_t n = 0; n < sizeof(parts) / sizeof(parts[0]); n++)
    COMMAND(parts[n].name,
            SET(NVME_LM_MIGRATION_SEND_SEL, NVME_LM_SEL_SET_CONTROLLER_STATE) |
                SET(NVME_LM_MIGRATION_SEND_MOS, SET(NVME_LM_SEQIND, parts[n].sequence)),
            SET(NVME_LM_SET_CONTROLLER_STATE_CSUUIDI, UUID_INDEX) |
                SET(NVME_LM_SET_CONTROLLER_STATE_CSVI, VERSION_INDEX) |
                SET(NVME_LM_SET_CONTROLLER_STATE_CNTLID, CNTLID));
  COMMAND("get_state",
          SET(NVME_LM_MIGRATION_RECV_SEL, NVME_LM_SEL_GET_CONTROLLER_STATE) |
              SET(NVME_LM_MIGRATION_RECV_MOS, SET(NVME_LM_GET_CONTROLLER_STATE_CSVI, VERSION_INDEX)),
          SET(NVME_LM_GET_CONTROLLER_STATE_CSUIDXP, UUID_PARAMETER) |
              SET(NVME_LM_GET_CONTROLLER_STATE_CSUUIDI, UUID_INDEX) |
              SET(NVME_LM_GET_CONTROLLER_STATE_CNTLID, CNTLID));
  COMMAND("log_user_data",
          SET(NVME_LM_TRACK_SEND_SEL, NVME_LM_SEL_LOG_USER_DATA_CHANGES) |
              SET(NVME_LM_TRACK_SEND_MOS, SET(NVME_LM_LACT, NVME_LM_LACT_START_LOGGING)),
          QUEUE);
  printf("slot_0_phase 0x%x\n", SET(NVME_LM_S0PT, 1));
  printf("vector 0x%x\n", SET(NVME_LM_IOCQIV, 0xffff));
  printf("state_suspended 0x%x\n", (unsigned)NVME_LM_GET_CONTROLLER_STATE_CSUP);
  return 0;
}
