/* A libnvidia-ml.so.1 without a driver: what it tells stands in the text file $FAKE_NVML, read anew at each call.

   gpu  UUID TOTAL_MIB USED_MIB UTILISATION COMPUTE_MODE MIG ERROR    a GPU; ERROR is what its memory answers
   mig  UUID TOTAL_MIB USED_MIB INSTANCE                              an instance of the GPU above
   proc PID MIB                                                       a process on the device above; MIB -1: not told
   mps  PID MIB                                                       the same, a client of MPS
   xid  GPU_NUMBER XID INSTANCE                                       an event, heard once; INSTANCE -1: all
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LIMIT 32
#define MIB 1048576ULL
enum { OK = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, TIMEOUT = 10, UNKNOWN = 999 };

typedef struct { int is_mig, parent, mode, mig, error, instance, utilisation; long total, used; char uuid[96]; } Device;
typedef struct { int device, mps, pid; long mib; } Process;
typedef struct { int gpu, xid, instance; } Event;
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute; } Info;
typedef struct { void *device; unsigned long long type, data; unsigned instance, compute; } Heard;

static Device devices[LIMIT];
static Process procs[LIMIT];
static Event events[LIMIT];
static int n_devices, n_procs, n_events, heard;

static int look(void) {
    char line[256];
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    n_devices = n_procs = n_events = 0;
    if (!file) return UNKNOWN;
    int gpu = -1;
    while (fgets(line, sizeof line, file)) {
        Device d = {0};
        Process p = {0};
        Event e;
        if (sscanf(line, "gpu %95s %ld %ld %d %d %d %d", d.uuid, &d.total, &d.used, &d.utilisation, &d.mode, &d.mig, &d.error) == 7) {
            gpu = n_devices;
            devices[n_devices++] = d;
        } else if (sscanf(line, "mig %95s %ld %ld %d", d.uuid, &d.total, &d.used, &d.instance) == 4) {
            d.is_mig = 1;
            d.parent = gpu;
            d.error = devices[gpu].error;
            devices[n_devices++] = d;
        } else if (sscanf(line, "proc %d %ld", &p.pid, &p.mib) == 2 || (sscanf(line, "mps %d %ld", &p.pid, &p.mib) == 2 && (p.mps = 1))) {
            p.device = n_devices - 1;
            procs[n_procs++] = p;
        } else if (sscanf(line, "xid %d %d %d", &e.gpu, &e.xid, &e.instance) == 3) {
            events[n_events++] = e;
        }
    }
    fclose(file);
    return OK;
}

static Device *at(void *handle) { look(); return &devices[(long)handle - 1]; }

static void *nth(int wanted) {
    int seen = 0;
    for (int i = 0; i < n_devices; i++)
        if (!devices[i].is_mig && seen++ == wanted) return (void *)(long)(i + 1);
    return NULL;
}

int nvmlInitWithFlags(unsigned flags) { return look(); }
int nvmlInit_v2(void) { return look(); }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "error of the fake NVML"; }
int nvmlSystemGetDriverVersion(char *text, unsigned length) { snprintf(text, length, "0.fake"); return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) {
    look();
    for (*count = 0; nth(*count); ++*count) {}
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { look(); *handle = nth(index); return *handle ? OK : NOT_FOUND; }
int nvmlDeviceGetUUID(void *h, char *text, unsigned length) { snprintf(text, length, "%s", at(h)->uuid); return OK; }
int nvmlDeviceGetName(void *h, char *text, unsigned length) { snprintf(text, length, "Fake GPU"); return OK; }
int nvmlDeviceGetComputeMode(void *h, int *mode) { if (at(h)->is_mig) return NOT_SUPPORTED; *mode = at(h)->mode; return OK; }
int nvmlDeviceGetMigMode(void *h, unsigned *now, unsigned *pending) { *now = *pending = at(h)->mig; return OK; }
int nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned *count) { *count = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned index, void **handle) {
    look();
    unsigned seen = 0;
    for (int i = 0; i < n_devices; i++)
        if (devices[i].is_mig && devices[i].parent == (long)h - 1 && seen++ == index) { *handle = (void *)(long)(i + 1); return OK; }
    return NOT_FOUND;
}
int nvmlDeviceGetGpuInstanceId(void *h, unsigned *id) { if (!at(h)->is_mig) return NOT_SUPPORTED; *id = at(h)->instance; return OK; }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *memory) {
    Device *d = at(h);
    if (d->error) return d->error;
    memory[0] = d->total * MIB;
    memory[1] = (d->total - d->used) * MIB;
    memory[2] = d->used * MIB;
    return OK;
}
int nvmlDeviceGetUtilizationRates(void *h, unsigned *rates) {
    Device *d = at(h);
    if (d->is_mig) return NOT_SUPPORTED;
    rates[0] = d->utilisation;
    rates[1] = 0;
    return OK;
}
static int processes(void *h, unsigned *count, Info *infos, int mps) {
    look();
    unsigned found = 0;
    for (int i = 0; i < n_procs; i++) {
        if (procs[i].device != (long)h - 1 || procs[i].mps != mps) continue;
        if (infos && found < *count) {
            unsigned long long used = procs[i].mib < 0 ? ~0ULL : procs[i].mib * MIB;
            infos[found] = (Info){procs[i].pid, used, ~0u, ~0u};
        }
        found++;
    }
    int fits = infos || !found;
    *count = found;
    return fits ? OK : TOO_SMALL;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *count, Info *infos) { return processes(h, count, infos, 0); }
int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *h, unsigned *count, Info *infos) { return processes(h, count, infos, 1); }
int nvmlEventSetCreate(void **set) { *set = (void *)1; heard = 0; return OK; }
int nvmlEventSetFree(void *set) { return OK; }
int nvmlDeviceRegisterEvents(void *h, unsigned long long types, void *set) { return OK; }
int nvmlEventSetWait_v2(void *set, Heard *event, unsigned timeout_ms) {
    look();
    if (heard >= n_events) return TIMEOUT;
    Event e = events[heard++];
    *event = (Heard){nth(e.gpu), 8, e.xid, e.instance, ~0u};
    return OK;
}
