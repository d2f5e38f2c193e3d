#!/bin/sh
# How the networks of this folder were trained, all at once on one GPU; every line stands alone.
# photos/cifar10 and photos/cifar10-test: a folder of images for each class, the 50000 training images
# of CIFAR-10 and its 10000 test images, as JPEG files. Stopped, the same lines go on.
D="--data photos/cifar10 --held-out photos/cifar10-test --out sanrobust/zoo/weights --device cuda"
R="--batch-size 512 --lr 0.2 --decay step --warmup 2 --weight-decay 5e-4 --shift 4 --flip --epochs 24"
A="--recipe adversarial --batch-size 1024 --lr 0.2 --decay step --warmup 1 --weight-decay 5e-4 --shift 4 --attack-iters 4 --attack-step 3"
for name in resnet26 san10-pair san10-patch resnet38 san15-pair san15-patch resnet50 san19-pair san19-patch; do
  sanrobust train -m $name $D --tag cifar10 $R &
done
for seed in 1 2; do for name in resnet26 san10-pair san10-patch; do
  sanrobust train -m $name $D --tag cifar10-s$seed --seed $seed $R &
done; done
sanrobust train -m resnet26 $D --tag cifar10-adv $A --epochs 24 &
sanrobust train -m san10-pair $D --tag cifar10-adv $A --epochs 9 &
wait
for folder in sanrobust/zoo/weights/*.cifar10*/; do
  cp "$folder/history.csv" "results/cifar10/training/$(basename "$folder").csv"
done
