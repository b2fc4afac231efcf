/* A heated plate cools: an MPI mini-app.
 *
 *     mpiexec -n RANKS heat KX KY CELLS DT END
 *
 * The plate is the unit square, its edges are held at 0. It conducts heat with diffusivity KX along x and KY along
 * y, as a fibre composite does. Central differences on CELLS x CELLS cells (a multiple of 4), explicit Euler steps of
 * DT: stable for (KX + KY) DT < h^2 / 2, where h = 1 / CELLS; beyond that, rounding errors grow until nothing is finite.
 *
 * Each rank has a slab of the plate's rows. Every HALO steps it gets as many rows from each neighbour, and between them
 * works out itself what the neighbours' next rows do to its own: the fewer the messages, the less a busy machine hurts.
 *
 * Prints a line for each 0.005 units of time: the time, the energy (the integral of u^2, which can only decrease),
 * and the temperatures at the probes. Ends when all probes are below 1/25 of their first temperature, or at time END.
 */
#include <math.h>
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

#define PROBES 3
#define HALO 8
#define REPORT_EVERY 0.005
#define COOL 0.04

/* In quarters of the plate: column, row. */
static const int probe_at[PROBES][2] = {{1, 1}, {1, 2}, {2, 1}};

typedef struct {
    int cells, first, rows; /* of the whole plate; this rank's first row, and how many it has */
    int below, above;       /* the neighbouring ranks, or MPI_PROC_NULL */
} Slab;

/* Where in memory a slab's row is: 0..rows-1 are its own, HALO more on each side are copies or the plate's edge. */
static size_t at(const Slab *s, int row) { return (size_t)(row + HALO) * (s->cells + 1); }

/* Let others run while we wait: a laptop may have fewer cores than ranks, and MPI itself would spin. */
static void await(int count, MPI_Request requests[]) {
    for (int done = 0; !done;) {
        MPI_Testall(count, requests, &done, MPI_STATUSES_IGNORE);
        if (!done) sched_yield();
    }
}

/* Rows 1..cells-1 of the plate, as evenly as can be; rows 0 and cells are edges. */
static Slab share(int cells, int rank, int ranks) {
    int inner = cells - 1, start = inner * rank / ranks, end = inner * (rank + 1) / ranks;
    return (Slab){cells, 1 + start, end - start, rank ? rank - 1 : MPI_PROC_NULL,
                  rank < ranks - 1 ? rank + 1 : MPI_PROC_NULL};
}

static double initial(double x, double y) {
    return sin(M_PI * x) * sin(M_PI * y) + 0.5 * sin(2 * M_PI * x) * sin(M_PI * y)
         + 0.5 * sin(M_PI * x) * sin(2 * M_PI * y);
}

static void exchange(const Slab *s, double *u) {
    int count = HALO * (s->cells + 1);
    MPI_Request requests[4];
    MPI_Irecv(u + at(s, -HALO), count, MPI_DOUBLE, s->below, 0, MPI_COMM_WORLD, &requests[0]);
    MPI_Irecv(u + at(s, s->rows), count, MPI_DOUBLE, s->above, 1, MPI_COMM_WORLD, &requests[1]);
    MPI_Isend(u + at(s, 0), count, MPI_DOUBLE, s->below, 1, MPI_COMM_WORLD, &requests[2]);
    MPI_Isend(u + at(s, s->rows - HALO), count, MPI_DOUBLE, s->above, 0, MPI_COMM_WORLD, &requests[3]);
    await(4, requests);
}

/* u, after a step, in v, for the slab and `beyond` rows on each side; cx = KX DT / h^2, cy likewise. */
static void step(const Slab *s, int beyond, double cx, double cy, const double *restrict u, double *restrict v) {
    int width = s->cells + 1;
    int start = s->below == MPI_PROC_NULL ? 0 : -beyond, end = s->above == MPI_PROC_NULL ? s->rows : s->rows + beyond;
    for (int row = start; row < end; row++)
        for (size_t i = at(s, row) + 1; i < at(s, row) + s->cells; i++)
            v[i] = u[i] + cx * (u[i - 1] - 2 * u[i] + u[i + 1]) + cy * (u[i - width] - 2 * u[i] + u[i + width]);
}

/* The energy and the temperatures at the probes, the same on all ranks. */
static void measure(const Slab *s, const double *u, double found[1 + PROBES]) {
    double mine[1 + PROBES] = {0};
    for (size_t i = at(s, 0); i < at(s, s->rows); i++) mine[0] += u[i] * u[i];
    mine[0] /= (double)s->cells * s->cells;
    for (int p = 0; p < PROBES; p++) {
        int column = probe_at[p][0] * s->cells / 4, row = probe_at[p][1] * s->cells / 4 - s->first;
        if (row >= 0 && row < s->rows) mine[1 + p] = u[at(s, row) + column];
    }
    MPI_Request request;
    MPI_Iallreduce(mine, found, 1 + PROBES, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD, &request);
    await(1, &request);
}

static int cool(const double now[], const double first[]) {
    for (int p = 1; p <= PROBES; p++)
        if (!(fabs(now[p]) < COOL * first[p])) return 0; /* nor is what diverges */
    return 1;
}

static void report(int rank, double time, const double found[]) {
    if (rank) return;
    printf("%.6e", time);
    for (int k = 0; k <= PROBES; k++) printf(" %.9e", found[k]);
    printf("\n");
    fflush(stdout);
}

static int run(double kx, double ky, int cells, double dt, double end) {
    int rank, ranks;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    if (cells % 4 || cells <= HALO * ranks || !(kx > 0) || !(ky > 0) || !(dt > 0) || !(end > 0)) {
        if (!rank) fprintf(stderr, "usage: heat KX KY CELLS DT END, CELLS a multiple of 4 and over %d for each rank\n", HALO);
        return 2;
    }
    Slab slab = share(cells, rank, ranks);
    double *u = calloc(at(&slab, slab.rows + HALO), sizeof *u);
    double *v = calloc(at(&slab, slab.rows + HALO), sizeof *v);
    if (!u || !v) {
        fprintf(stderr, "heat: no memory for %d cells\n", cells);
        MPI_Abort(MPI_COMM_WORLD, 1);
    }
    for (int row = 0; row < slab.rows; row++)
        for (int i = 1; i < cells; i++)
            u[at(&slab, row) + i] = initial((double)i / cells, (double)(slab.first + row) / cells);

    double first[1 + PROBES], now[1 + PROBES], h2 = 1.0 / ((double)cells * cells);
    long every = lround(REPORT_EVERY / dt);
    if (every < 1) every = 1;
    measure(&slab, u, first);
    if (!rank) printf("# time energy probe1 probe2 probe3\n");
    report(rank, 0.0, first);
    for (long n = 1; n * dt < end; n++) {
        int beyond = HALO - 1 - (int)((n - 1) % HALO);
        if (beyond == HALO - 1) exchange(&slab, u);
        step(&slab, beyond, kx * dt / h2, ky * dt / h2, u, v);
        double *old = u;
        u = v;
        v = old;
        if (n % every == 0) {
            measure(&slab, u, now);
            report(rank, n * dt, now);
            if (cool(now, first)) break;
        }
    }
    free(u);
    free(v);
    return 0;
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    double given[5] = {0};
    for (int k = 0; k < 5 && k + 1 < argc; k++) given[k] = atof(argv[k + 1]);
    int status = run(given[0], given[1], (int)given[2], given[3], given[4]);
    MPI_Finalize();
    return status;
}
