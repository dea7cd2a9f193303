# Changes to the containerd configuration of kind's base image: the pause image is the one that this cluster builds, and
# a machine may withhold CAP_SYS_RESOURCE, without which runc cannot lower a process' OOM score.
s|^\( *sandbox_image = \).*|\1"localhost/pause:1"|
s|^\( *restrict_oom_score_adj = \).*|\1true|
